#!/usr/bin/env bash
# Creates everything on Azure that overlays/aks depends on, and writes Azure's values into overlays/aks/site/site.yaml.
# If you run it again, it creates only what is missing and leaves the rest unchanged.
set -euo pipefail
k8s=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=k8s/aks/settings.sh
. "$k8s/aks/settings.sh"
PAUSE=${PAUSE:-10}
SITE=${SITE:-$k8s/overlays/aks/site/site.yaml}

usage() {
  cat <<HELP
usage: k8s/aks/create.sh [--dry-run]

  --dry-run  print the commands without running them; needs neither az nor a subscription

Variables and their current values:
  NAME=$NAME  LOCATION=$LOCATION  RESOURCE_GROUP=$RESOURCE_GROUP  CLUSTER=$CLUSTER
  KUBERNETES_VERSION=$KUBERNETES_VERSION  NODE_SIZE=$NODE_SIZE  DATABASE_NODE_SIZE=$DATABASE_NODE_SIZE
  REGISTRY, VAULT, STORAGE: names that must be unique across Azure; by default, they are derived from
    NAME, RESOURCE_GROUP and the subscription
  ALERT_URL: the webhook that receives the alerts; you can also set it in the vault later
  AUTHORIZED_RANGES=$AUTHORIZED_RANGES: the addresses that may reach the API server, such as
    203.0.113.0/24,198.51.100.7/32; if empty, any address may
  MAINTENANCE_DAY=$MAINTENANCE_DAY  MAINTENANCE_START=$MAINTENANCE_START: the weekly four-hour window (UTC)
    for upgrades of Kubernetes and the nodes
HELP
}

dry_run=
for argument in "$@"; do
  case $argument in
    --dry-run) dry_run=yes ;;
    -h | --help) usage; exit 0 ;;
    *) echo "error: unknown argument: $argument" >&2; usage >&2; exit 2 ;;
  esac
done

say() { printf '\n# %s\n' "$*"; }

run() {
  local shown=("$@")
  [ "$1" != patiently ] || shown=("${@:2}")
  printf '+'; printf ' %q' "${shown[@]}"; printf '\n'
  [ -n "$dry_run" ] || "$@" >/dev/null
}

# A new role assignment takes minutes to reach the vault, so a forbidden request is retried for three minutes.
TRIES=18
wait_for_role() {
  echo "# not allowed yet, because the role is new (attempt $1 of $TRIES); retrying in $PAUSE seconds" >&2
  sleep "$PAUSE"
}

# patiently COMMAND…: runs the command, and retries it while access is forbidden
patiently() {
  local try said
  for ((try = 1; try <= TRIES; try++)); do
    if said=$("$@" 2>&1); then return; fi
    case $said in *Forbidden*) wait_for_role "$try" ;; *) break ;; esac
  done
  echo "$said" >&2
  return 1
}

# ask WHAT COMMAND…: prints the command's output, or <WHAT> in a dry run
ask() {
  local what=$1
  shift
  if [ -n "$dry_run" ]; then echo "<$what>"; else "$@" --output tsv; fi
}

# missing COMMAND…: true if the object does not exist; any other error ends the script
missing() {
  [ -z "$dry_run" ] || return 0
  local try said code
  for ((try = 1; try <= TRIES; try++)); do
    code=0
    said=$("$@" --output none 2>&1) || code=$?
    [ "$code" -ne 0 ] || return 1
    [ "$code" -ne 3 ] || return 0 # az's exit code for an object that does not exist
    case $said in
      *NotFound* | *"not found"* | *"could not be found"* | *"does not exist"*) return 0 ;;
      *Forbidden*) wait_for_role "$try" ;;
      *) break ;;
    esac
  done
  echo "error: $* failed: $said" >&2
  exit 1
}

if [ -z "$dry_run" ]; then
  command -v az >/dev/null || { echo "error: az is not installed: https://learn.microsoft.com/cli/azure/install-azure-cli" >&2; exit 1; }
  command -v openssl >/dev/null || { echo "error: openssl is not installed; the script needs it to generate passwords" >&2; exit 1; }
  az account show --output none 2>/dev/null || { echo "error: not logged in: run az login, then az account set --subscription …" >&2; exit 1; }
  [ -f "$SITE" ] || { echo "error: $SITE does not exist" >&2; exit 1; }
fi
subscription=$(ask subscription az account show --query id)
tenant=$(ask tenant az account show --query tenantId)
# The names are the same in every run, and different in every subscription.
if [ -n "$dry_run" ]; then suffix=00000000; else suffix=$(printf '%s%s' "$subscription" "$RESOURCE_GROUP" | { sha256sum 2>/dev/null || shasum -a 256; } | cut -c1-8); fi
REGISTRY=${REGISTRY:-${NAME//-/}$suffix}
VAULT=${VAULT:-$NAME-$suffix}
STORAGE=${STORAGE:-${NAME//-/}$suffix}
scope=/subscriptions/$subscription/resourceGroups/$RESOURCE_GROUP

say "The resource group. delete.sh deletes all of it, so a group that this script did not create is never used."
if missing az group show --name "$RESOURCE_GROUP"; then
  run az group create --name "$RESOURCE_GROUP" --location "$LOCATION" --tags "$TAG=$TAG_VALUE"
elif [ "$(az group show --name "$RESOURCE_GROUP" --query "tags.\"$TAG\"" --output tsv)" != "$TAG_VALUE" ]; then
  echo "error: the resource group $RESOURCE_GROUP exists and was not made by this script; set RESOURCE_GROUP to another name" >&2
  exit 1
fi

say "The registry for the two images, without an admin password"
if missing az acr show --resource-group "$RESOURCE_GROUP" --name "$REGISTRY"; then
  run az acr create --resource-group "$RESOURCE_GROUP" --name "$REGISTRY" --location "$LOCATION" --sku Standard --admin-enabled false
fi

say "Three managed identities: for the cluster, the backups and the secrets"
for identity in cluster backup secrets; do
  if missing az identity show --resource-group "$RESOURCE_GROUP" --name "$NAME-$identity"; then
    run az identity create --resource-group "$RESOURCE_GROUP" --name "$NAME-$identity" --location "$LOCATION"
  fi
done
cluster_identity=$(ask cluster-identity az identity show --resource-group "$RESOURCE_GROUP" --name "$NAME-cluster" --query id)

# allow IDENTITY ROLE SCOPE
allow() {
  local principal
  principal=$(ask "$1-principal" az identity show --resource-group "$RESOURCE_GROUP" --name "$NAME-$1" --query principalId)
  run az role assignment create --assignee-object-id "$principal" --assignee-principal-type ServicePrincipal --role "$2" --scope "$3"
}

# allow_me ROLE SCOPE
allow_me() {
  local me
  me=$(ask me az ad signed-in-user show --query id)
  run az role assignment create --assignee-object-id "$me" --assignee-principal-type User --role "$1" --scope "$2"
}

say "The Key Vault, for the passwords that CloudNativePG does not create and the key that encrypts the cluster's Secrets at rest"
if missing az keyvault show --resource-group "$RESOURCE_GROUP" --name "$VAULT"; then
  run az keyvault create --resource-group "$RESOURCE_GROUP" --name "$VAULT" --location "$LOCATION" --enable-rbac-authorization true --enable-purge-protection true --retention-days 90
fi
vault=$scope/providers/Microsoft.KeyVault/vaults/$VAULT
allow_me "Key Vault Administrator" "$vault"
allow cluster "Key Vault Crypto User" "$vault"
if missing az keyvault key show --vault-name "$VAULT" --name etcd; then
  run patiently az keyvault key create --vault-name "$VAULT" --name etcd --kty RSA --size 2048
fi
key=$(ask key az keyvault key show --vault-name "$VAULT" --name etcd --query key.kid)

# keep SECRET COMMAND: stores the command's output as a secret if there is none yet; the value never appears in an
# argument, a file or the script's output
keep() {
  if missing az keyvault secret show --vault-name "$VAULT" --name "$1"; then
    echo "+ $2 | az keyvault secret set --vault-name $VAULT --name $1 --file /dev/stdin"
    [ -n "$dry_run" ] || patiently pass_on "$1" "$2"
  fi
}
pass_on() {
  "$2" | tr -d '\n' | az keyvault secret set --vault-name "$VAULT" --name "$1" --file /dev/stdin --encoding utf-8 --output none
}
new_password() { openssl rand -hex 24; }
alert_url() { echo "${ALERT_URL:-https://alerts.invalid/}"; }
keep grafana-admin-password new_password
# part argocd
keep argocd-admin-password new_password
# end argocd
keep alert-receiver-url alert_url
# The cluster cannot read any other secret in the vault.
for secret in grafana-admin-password argocd-admin-password alert-receiver-url; do
  allow secrets "Key Vault Secrets User" "$vault/secrets/$secret"
done

authorized=()
[ -z "$AUTHORIZED_RANGES" ] || authorized=(--api-server-authorized-ip-ranges "$AUTHORIZED_RANGES")
say "The cluster, with three zones, Cilium's network policies and workload identity, and without local accounts"
if missing az aks show --resource-group "$RESOURCE_GROUP" --name "$CLUSTER"; then
  run az aks create --resource-group "$RESOURCE_GROUP" --name "$CLUSTER" --location "$LOCATION" \
    --kubernetes-version "$KUBERNETES_VERSION" --tier standard --zones 1 2 3 \
    --node-count 3 --node-vm-size "$NODE_SIZE" --enable-cluster-autoscaler --min-count 3 --max-count 6 \
    --network-plugin azure --network-plugin-mode overlay --network-dataplane cilium --pod-cidr 10.244.0.0/16 \
    --enable-oidc-issuer --enable-workload-identity --assign-identity "$cluster_identity" \
    --enable-aad --enable-azure-rbac --disable-local-accounts \
    --enable-azure-keyvault-kms --azure-keyvault-kms-key-vault-network-access Public --azure-keyvault-kms-key-id "$key" \
    --attach-acr "$REGISTRY" --auto-upgrade-channel patch --node-os-upgrade-channel NodeImage --no-ssh-key \
    ${authorized[@]+"${authorized[@]}"}
fi
allow_me "Azure Kubernetes Service RBAC Cluster Admin" "$scope/providers/Microsoft.ContainerService/managedClusters/$CLUSTER"

say "The weekly window for upgrades"
for window in aksManagedAutoUpgradeSchedule aksManagedNodeOSUpgradeSchedule; do
  if missing az aks maintenanceconfiguration show --resource-group "$RESOURCE_GROUP" --cluster-name "$CLUSTER" --name "$window"; then
    run az aks maintenanceconfiguration add --resource-group "$RESOURCE_GROUP" --cluster-name "$CLUSTER" --name "$window" \
      --schedule-type Weekly --day-of-week "$MAINTENANCE_DAY" --interval-weeks 1 --start-time "$MAINTENANCE_START" --duration 4 --utc-offset +00:00
  fi
done

say "Nodes for PostgreSQL only, one in each zone. An upgrade first adds a node in each zone, because a disk cannot leave its zone. A node that cannot be drained within 30 minutes stays cordoned."
if missing az aks nodepool show --resource-group "$RESOURCE_GROUP" --cluster-name "$CLUSTER" --name postgres; then
  run az aks nodepool add --resource-group "$RESOURCE_GROUP" --cluster-name "$CLUSTER" --name postgres --zones 1 2 3 --node-count 3 \
    --node-vm-size "$DATABASE_NODE_SIZE" --labels workload=postgres --node-taints workload=postgres:NoSchedule \
    --max-surge 3 --drain-timeout 30 --undrainable-node-behavior Cordon
fi

say "The storage for the backups, in three zones, with a readable copy in the paired region. Shared keys are disabled, and deleted blobs are kept for two weeks."
if missing az storage account show --resource-group "$RESOURCE_GROUP" --name "$STORAGE"; then
  run az storage account create --resource-group "$RESOURCE_GROUP" --name "$STORAGE" --location "$LOCATION" --kind StorageV2 --sku Standard_RAGZRS \
    --allow-blob-public-access false --allow-shared-key-access false --min-tls-version TLS1_2
fi
run az storage account blob-service-properties update --resource-group "$RESOURCE_GROUP" --account-name "$STORAGE" \
  --enable-delete-retention true --delete-retention-days 14
if missing az storage container-rm show --resource-group "$RESOURCE_GROUP" --storage-account "$STORAGE" --name goals-db; then
  run az storage container-rm create --resource-group "$RESOURCE_GROUP" --storage-account "$STORAGE" --name goals-db
fi
# You need this role to read the copy during an outage of the region, when no role can be assigned.
allow_me "Storage Blob Data Reader" "$scope/providers/Microsoft.Storage/storageAccounts/$STORAGE"
allow backup "Storage Blob Data Contributor" "$scope/providers/Microsoft.Storage/storageAccounts/$STORAGE/blobServices/default/containers/goals-db"

say "The ServiceAccounts that may use the identities"
issuer=$(ask issuer az aks show --resource-group "$RESOURCE_GROUP" --name "$CLUSTER" --query oidcIssuerProfile.issuerUrl)
# trust IDENTITY NAMESPACE SERVICEACCOUNT
trust() {
  if missing az identity federated-credential show --resource-group "$RESOURCE_GROUP" --identity-name "$NAME-$1" --name "$2-$3"; then
    run az identity federated-credential create --resource-group "$RESOURCE_GROUP" --identity-name "$NAME-$1" --name "$2-$3" \
      --issuer "$issuer" --subject "system:serviceaccount:$2:$3" --audiences api://AzureADTokenExchange
  fi
}
trust backup goals goals-db
trust backup goals goals-db-restored
trust backup goals goals-db-next
trust secrets monitoring key-vault
# part argocd
trust secrets argocd key-vault
# end argocd

say "Azure's values, written to ${SITE#"$PWD"/}"
# write KEY VALUE
write() {
  echo "$1: $2"
  if [ -z "$dry_run" ]; then
    grep -q "^  $1: " "$SITE" || { echo "error: $SITE has no key $1" >&2; exit 1; }
    sed "s|^  $1: .*|  $1: $2|" "$SITE" >"$SITE.new"
    mv "$SITE.new" "$SITE"
  fi
}
secrets_client=$(ask secrets-client az identity show --resource-group "$RESOURCE_GROUP" --name "$NAME-secrets" --query clientId)
backup_client=$(ask backup-client az identity show --resource-group "$RESOURCE_GROUP" --name "$NAME-backup" --query clientId)
write vaultUrl "https://$VAULT.vault.azure.net"
write tenantId "$tenant"
write secretsClientId "$secrets_client"
write backupUrl "https://$STORAGE.blob.core.windows.net/goals-db"
write backupClientId "$backup_client"

say "kubectl"
run az aks get-credentials --resource-group "$RESOURCE_GROUP" --name "$CLUSTER" --overwrite-existing
cat <<NEXT

Next: build the images in $REGISTRY.azurecr.io and fill in the rest of site.yaml, as described in k8s/README.md, "On Azure".
NEXT
