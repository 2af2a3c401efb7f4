#!/usr/bin/env bash
# Deletes the resource group that create.sh created, with everything in it, including the backups.
set -euo pipefail
# shellcheck source=k8s/aks/settings.sh
. "$(dirname "$0")/settings.sh"

usage() {
  cat <<HELP
usage: k8s/aks/delete.sh [--dry-run] [--yes]

  --dry-run  print the commands without running them; needs neither az nor a subscription
  --yes      do not ask for confirmation

Deletes the resource group RESOURCE_GROUP=$RESOURCE_GROUP, if create.sh created it.
HELP
}

dry_run=
yes=
for argument in "$@"; do
  case $argument in
    --dry-run) dry_run=yes ;;
    --yes) yes=yes ;;
    -h | --help) usage; exit 0 ;;
    *) echo "error: unknown argument: $argument" >&2; usage >&2; exit 2 ;;
  esac
done

delete=(az group delete --name "$RESOURCE_GROUP" --yes)
if [ -n "$dry_run" ]; then
  echo "+ ${delete[*]}"
  exit 0
fi

command -v az >/dev/null || { echo "error: az is not installed" >&2; exit 1; }
if ! az group show --name "$RESOURCE_GROUP" --output none 2>/dev/null; then
  echo "there is no resource group $RESOURCE_GROUP"
  exit 0
fi
if [ "$(az group show --name "$RESOURCE_GROUP" --query "tags.\"$TAG\"" --output tsv)" != "$TAG_VALUE" ]; then
  echo "error: the resource group $RESOURCE_GROUP was not made by create.sh (no tag $TAG=$TAG_VALUE); nothing was deleted" >&2
  exit 1
fi
if [ -z "$yes" ]; then
  az resource list --resource-group "$RESOURCE_GROUP" --query "[].{name: name, type: type}" --output table
  read -r -p "Delete all of this, including the database and its backups? To confirm, type $RESOURCE_GROUP: " answer
  [ "$answer" = "$RESOURCE_GROUP" ] || { echo "nothing was deleted"; exit 1; }
fi
echo "+ ${delete[*]}"
"${delete[@]}"
echo "The Key Vault cannot be purged for 90 days (purge protection), so its name stays reserved until then. Remove your DNS records yourself."
