#!/usr/bin/env bash
# Makes everything on Azure that overlays/aks stands on, and writes what Azure decided into overlays/aks/site/site.yaml.
# Run again, it makes what is missing and leaves the rest alone.
set -euo pipefail
k8s=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=k8s/aks/settings.sh
. "$k8s/aks/settings.sh"
PAUSE=${PAUSE:-10}
SITE=${SITE:-$k8s/overlays/aks/site/site.yaml}

usage() {
  cat <<HELP
usage: k8s/aks/create.sh [--dry-run]

  --dry-run  print the commands instead; needs neither az nor a subscription

Variables (and what they are now):
  NAME=$NAME  LOCATION=$LOCATION  RESOURCE_GROUP=$RESOURCE_GROUP  CLUSTER=$CLUSTER
  KUBERNETES_VERSION=$KUBERNETES_VERSION  NODE_SIZE=$NODE_SIZE  DATABASE_NODE_SIZE=$DATABASE_NODE_SIZE
  REGISTRY, VAULT, STORAGE: names that must be free in all of Azure; made from NAME and the subscription when unset
  ALERT_URL: the webhook that alerts are sent to; can be set in the vault later
  AUTHORIZED_RANGES=$AUTHORIZED_RANGES: the addresses that may reach the API server, as 203.0.113.0/24,198.51.100.7/32; empty: any
  MAINTENANCE_DAY=$MAINTENANCE_DAY  MAINTENANCE_START=$MAINTENANCE_START: the weekly four hours (UTC) for upgrades of Kubernetes and of the nodes
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

# A new role takes minutes until the vault knows of it: what it forbids is tried again for three.
TRIES=18
wait_for_role() {
  echo "# not allowed yet, as the role is new (try $1 of $TRIES); again in $PAUSE seconds" >&2
  sleep "$PAUSE"
}

# patiently COMMAND…
patiently() {
  local try said
  for ((try = 1; try <= TRIES; try++)); do
    if said=$("$@" 2>&1); then return; fi
    case $said in *Forbidden*) wait_for_role "$try" ;; *) break ;; esac
  done
  echo "$said" >&2
  return 1
}

# ask WHAT COMMAND…: what Azure says, or <WHAT> in a dry run
ask() {
  local what=$1
  shift
  if [ -n "$dry_run" ]; then echo "<$what>"; else "$@" --output tsv; fi
}

# missing COMMAND…: true where the thing is not there; that it cannot be seen is no answer, and ends the script
missing() {
  [ -z "$dry_run" ] || return 0
  local try said code
  for ((try = 1; try <= TRIES; try++)); do
    code=0
    said=$("$@" --output none 2>&1) || code=$?
    [ "$code" -ne 0 ] || return 1
    [ "$code" -ne 3 ] || return 0 # az's code for what does not exist
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
  command -v openssl >/dev/null || { echo "error: openssl is not installed; it makes the passwords" >&2; exit 1; }
  az account show --output none 2>/dev/null || { echo "error: not logged in: run az login, and az account set --subscription …" >&2; exit 1; }
  [ -f "$SITE" ] || { echo "error: $SITE is not there" >&2; exit 1; }
fi
subscription=$(ask subscription az account show --query id)
tenant=$(ask tenant az account show --query tenantId)
# The same names at each run, and others in another subscription.
if [ -n "$dry_run" ]; then suffix=00000000; else suffix=$(printf '%s%s' "$subscription" "$RESOURCE_GROUP" | { sha256sum 2>/dev/null || shasum -a 256; } | cut -c1-8); fi
REGISTRY=${REGISTRY:-${NAME//-/}$suffix}
VAULT=${VAULT:-$NAME-$suffix}
STORAGE=${STORAGE:-${NAME//-/}$suffix}
scope=/subscriptions/$subscription/resourceGroups/$RESOURCE_GROUP

say "The resource group; delete.sh deletes it as a whole, so one that is not ours is not used"
if missing az group show --name "$RESOURCE_GROUP"; then
  run az group create --name "$RESOURCE_GROUP" --location "$LOCATION" --tags "$TAG=$TAG_VALUE"
elif [ "$(az group show --name "$RESOURCE_GROUP" --query "tags.\"$TAG\"" --output tsv)" != "$TAG_VALUE" ]; then
  echo "error: the resource group $RESOURCE_GROUP exists and was not made by this script: set RESOURCE_GROUP to another name" >&2
  exit 1
fi

say "The registry for the two images, without its administrator's password"
if missing az acr show --resource-group "$RESOURCE_GROUP" --name "$REGISTRY"; then
  run az acr create --resource-group "$RESOURCE_GROUP" --name "$REGISTRY" --location "$LOCATION" --sku Standard --admin-enabled false
fi

say "One identity for each purpose: the cluster, the backups, the secrets"
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

say "The Key Vault: passwords for what CloudNativePG does not make, and the key that encrypts the cluster's Secrets at rest"
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

# keep SECRET COMMAND: what the command prints becomes the secret; it stands in no argument, in no file and on no screen
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
# Only these three: what else is in the vault, the cluster cannot read.
for secret in grafana-admin-password argocd-admin-password alert-receiver-url; do
  allow secrets "Key Vault Secrets User" "$vault/secrets/$secret"
done

authorized=()
[ -z "$AUTHORIZED_RANGES" ] || authorized=(--api-server-authorized-ip-ranges "$AUTHORIZED_RANGES")
say "The cluster: three zones, Cilium's network policies, workload identity, no local accounts"
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

say "Upgrades only in the weekly window"
for window in aksManagedAutoUpgradeSchedule aksManagedNodeOSUpgradeSchedule; do
  if missing az aks maintenanceconfiguration show --resource-group "$RESOURCE_GROUP" --cluster-name "$CLUSTER" --name "$window"; then
    run az aks maintenanceconfiguration add --resource-group "$RESOURCE_GROUP" --cluster-name "$CLUSTER" --name "$window" \
      --schedule-type Weekly --day-of-week "$MAINTENANCE_DAY" --interval-weeks 1 --start-time "$MAINTENANCE_START" --duration 4 --utc-offset +00:00
  fi
done

say "Nodes for PostgreSQL alone, one in each zone. An upgrade first adds one more to each, as a disk stays in its zone; a node that cannot be drained in 30 minutes stays cordoned"
if missing az aks nodepool show --resource-group "$RESOURCE_GROUP" --cluster-name "$CLUSTER" --name postgres; then
  run az aks nodepool add --resource-group "$RESOURCE_GROUP" --cluster-name "$CLUSTER" --name postgres --zones 1 2 3 --node-count 3 \
    --node-vm-size "$DATABASE_NODE_SIZE" --labels workload=postgres --node-taints workload=postgres:NoSchedule \
    --max-surge 3 --drain-timeout 30 --undrainable-node-behavior Cordon
fi

say "The backups' storage, in three zones and copied to the paired region, where it can be read; no shared keys, and what is deleted stays for two weeks"
if missing az storage account show --resource-group "$RESOURCE_GROUP" --name "$STORAGE"; then
  run az storage account create --resource-group "$RESOURCE_GROUP" --name "$STORAGE" --location "$LOCATION" --kind StorageV2 --sku Standard_RAGZRS \
    --allow-blob-public-access false --allow-shared-key-access false --min-tls-version TLS1_2
fi
run az storage account blob-service-properties update --resource-group "$RESOURCE_GROUP" --account-name "$STORAGE" \
  --enable-delete-retention true --delete-retention-days 14
if missing az storage container-rm show --resource-group "$RESOURCE_GROUP" --storage-account "$STORAGE" --name goals-db; then
  run az storage container-rm create --resource-group "$RESOURCE_GROUP" --storage-account "$STORAGE" --name goals-db
fi
# You can read the copy while the region is down, when no role can be given any more.
allow_me "Storage Blob Data Reader" "$scope/providers/Microsoft.Storage/storageAccounts/$STORAGE"
allow backup "Storage Blob Data Contributor" "$scope/providers/Microsoft.Storage/storageAccounts/$STORAGE/blobServices/default/containers/goals-db"

say "Which ServiceAccount may be which identity"
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

say "What Azure decided, into ${SITE#"$PWD"/}"
# write KEY VALUE
write() {
  echo "$1: $2"
  if [ -z "$dry_run" ]; then
    grep -q "^  $1: " "$SITE" || { echo "error: $SITE has no $1" >&2; exit 1; }
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

Next: build the images into $REGISTRY.azurecr.io, fill in the rest of site.yaml, and go on in k8s/README.md, "On Azure".
NEXT
