# The settings that create.sh and delete.sh share. To override a value, set an environment variable of the same name.
# shellcheck shell=bash disable=SC2034  # read by the scripts that source this file
NAME=${NAME:-goals}
LOCATION=${LOCATION:-westeurope}
RESOURCE_GROUP=${RESOURCE_GROUP:-$NAME}
CLUSTER=${CLUSTER:-$NAME}
KUBERNETES_VERSION=${KUBERNETES_VERSION:-1.36}
NODE_SIZE=${NODE_SIZE:-Standard_D4ds_v5}
DATABASE_NODE_SIZE=${DATABASE_NODE_SIZE:-Standard_D2ds_v5}
# The addresses (comma-separated CIDRs) that may reach the API server. If empty, anyone with a login may reach it.
AUTHORIZED_RANGES=${AUTHORIZED_RANGES:-}
MAINTENANCE_DAY=${MAINTENANCE_DAY:-Sunday}
MAINTENANCE_START=${MAINTENANCE_START:-02:00}
# The tag by which delete.sh recognizes a resource group that create.sh created.
TAG=created-by
TAG_VALUE=goals-k8s-aks
