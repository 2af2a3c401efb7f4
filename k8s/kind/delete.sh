#!/usr/bin/env bash
# Deletes the cluster that create.sh created, with everything in it, and no other cluster.
set -euo pipefail

[ $# = 0 ] || { echo "error: no such option: $1" >&2; echo 'usage: k8s/kind/delete.sh' >&2; exit 2; }
for tool in kind kubectl; do
  command -v "$tool" >/dev/null || { echo "error: $tool is not installed" >&2; exit 1; }
done
if ! kind get clusters 2>/dev/null | grep -qx goals; then
  echo 'kind has no cluster named goals, so there is nothing to delete'
  exit 0
fi
own=$(mktemp)
trap 'rm -f "$own"' EXIT
kind export kubeconfig --name goals --kubeconfig "$own"
kubectl --kubeconfig "$own" get nodes --selector goals/cluster=local --output name | grep -q . || {
  echo "error: kind's cluster goals was not created from k8s/overlays/local/kind.yaml, so it is left alone" >&2
  exit 1
}
kind delete cluster --name goals
