#!/usr/bin/env bash
# Sets up the whole site in kind on this machine: cluster, images, operators and overlay. You can safely run it again:
# it keeps an existing cluster.
set -euo pipefail
cd "$(dirname "$0")/../.."

usage() {
  cat <<'HELP'
usage: k8s/kind/create.sh [--dry-run]

  --dry-run  print the commands without running them

  SITE=no    set up everything except the site itself, for `make cluster-test`
HELP
}

dry_run=
case ${1:-} in
  --dry-run) dry_run=yes ;;
  -h | --help) usage; exit 0 ;;
  '') ;;
  *) echo "error: no such option: $1" >&2; usage >&2; exit 2 ;;
esac

run() {
  echo "+ $*"
  [ -n "$dry_run" ] || "$@"
}

for tool in docker kind kubectl helm; do
  [ -n "$dry_run" ] || command -v "$tool" >/dev/null || { echo "error: $tool is not installed" >&2; exit 1; }
done

# step NAME LOOK…: announces the step, and remembers the command that shows why it hangs.
number=0
step() {
  number=$((number + 1))
  echo "# $number. $1 (if it hangs, run: ${*:2})"
  look=${*:2}
}
# The cluster's kubeconfig: all later commands use this cluster, regardless of kubectl's current context.
own=$(mktemp)
trap 'hint $?' EXIT
hint() {
  rm -f "$own"
  [ "$1" = 0 ] || { echo "error: step $number did not finish. Everything done so far stays in place. To find the cause, run:"; echo "  ${look:-}"; } >&2
}

step 'cluster' docker ps
if [ -z "$dry_run" ] && kind get clusters 2>/dev/null | grep -qx goals; then
  kind export kubeconfig --name goals --kubeconfig "$own"
  kubectl --kubeconfig "$own" get nodes --selector goals/cluster=local --output name | grep -q . || {
    echo "error: kind's cluster goals was not created from k8s/overlays/local/kind.yaml, so it is left alone" >&2
    exit 1
  }
  echo 'the cluster goals already exists'
else
  run kind create cluster --config k8s/overlays/local/kind.yaml
  run kind export kubeconfig --name goals --kubeconfig "$own"
fi
export KUBECONFIG=$own

step 'images' docker images
run make image
run kind load docker-image goals:dev goals-loadtest:dev --name goals

step 'operators' kubectl --context kind-goals get pods --all-namespaces
run k8s/platform/install.sh local

[ "${SITE:-yes}" != no ] || { echo 'the cluster is ready for the site'; exit 0; }

step 'site' kubectl --context kind-goals --namespace goals get pods,events
run kubectl apply --server-side -k k8s/overlays/local

step 'database' kubectl --context kind-goals --namespace goals describe cluster goals-db
run kubectl --namespace goals wait --for=condition=Ready cluster/goals-db --timeout=10m

step 'service' kubectl --context kind-goals --namespace goals describe pods --selector app.kubernetes.io/name=goals
run kubectl --namespace goals rollout status deployment/goals --timeout=5m

step 'gateway' kubectl --context kind-goals --namespace edge describe gateway edge
run kubectl --namespace edge wait --for=condition=Programmed gateway/edge --timeout=5m
run kubectl --namespace edge rollout status deployment/edge-nginx --timeout=5m

cat <<'ADDRESSES'
the page      https://goals.localhost/ (with a warning until your browser trusts the cluster's CA)
the CA        kubectl --context kind-goals --namespace cert-manager get secret private-ca --output jsonpath='{.data.tls\.crt}' | base64 -d
Grafana       kubectl --context kind-goals --namespace monitoring port-forward service/kube-prometheus-stack-grafana 3000:80
to delete it  make cluster-down
ADDRESSES
