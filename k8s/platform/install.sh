#!/usr/bin/env bash
# Installs the pinned operators into the current cluster, in the order they need each other; again is harmless.
set -euo pipefail
cd "$(dirname "$0")"

usage() {
  cat <<'HELP'
usage: k8s/platform/install.sh [--dry-run] local | aks | gitops | STEP…

  local    what overlays/local needs: all but backups and Argo CD
  aks      everything
  gitops   Argo CD alone; it installs the rest (k8s/argocd)
  STEP…    one or more of: namespaces gateway-api prometheus-operator-crds cert-manager cloudnative-pg external-secrets
           nginx-gateway-fabric plugin-barman-cloud kube-prometheus-stack argocd

  --dry-run  print the commands instead
HELP
}

ORDER=(namespaces gateway-api prometheus-operator-crds cert-manager cloudnative-pg external-secrets
  nginx-gateway-fabric plugin-barman-cloud kube-prometheus-stack argocd)

dry_run=
steps=()
for argument in "$@"; do
  case $argument in
    --dry-run) dry_run=yes ;;
    -h | --help) usage; exit 0 ;;
    local) for step in "${ORDER[@]}"; do case $step in plugin-barman-cloud | argocd) ;; *) steps+=("$step") ;; esac; done ;;
    aks) steps+=("${ORDER[@]}") ;;
    gitops) steps+=(namespaces argocd) ;;
    *)
      case " ${ORDER[*]} " in
        *" $argument "*) steps+=("$argument") ;;
        *) echo "error: no such step: $argument" >&2; usage >&2; exit 2 ;;
      esac
      ;;
  esac
done
[ "${#steps[@]}" -gt 0 ] || { usage >&2; exit 2; }

run() {
  echo "+ $*"
  [ -n "$dry_run" ] || "$@"
}

for tool in kubectl helm; do
  [ -n "$dry_run" ] || command -v "$tool" >/dev/null || { echo "error: $tool is not installed" >&2; exit 1; }
done

# apply FOLDER [OPTION…]: server-side, as the CRDs are too large for a plain apply
apply() {
  run kubectl apply --server-side --kustomize "$@"
}

# install RELEASE [OPTION…]
install() {
  local release=$1 name namespace chart version
  shift
  while read -r name namespace chart version; do
    [ "$name" = "$release" ] || continue
    local from=("$chart")
    case $chart in https://*) from=("${chart##*/}" --repo "${chart%/*}") ;; esac
    run helm upgrade --install "$release" "${from[@]}" --version "$version" --namespace "$namespace" \
      --values "$release/values.yaml" "$@"
    return
  done < <(grep -v '^#' charts.txt)
  echo "error: charts.txt does not name $release" >&2
  exit 1
}

wait_for() {
  run kubectl --namespace "$1" rollout status "$2" --timeout=300s
}

for step in "${steps[@]}"; do
  case $step in
    namespaces | gateway-api | prometheus-operator-crds) apply "$step" ;;
    cert-manager | external-secrets) install "$step" --wait --timeout 5m ;;
    cloudnative-pg)
      apply "$step"
      wait_for cnpg-system deployment/cnpg-controller-manager
      ;;
    nginx-gateway-fabric)
      apply nginx-gateway-fabric/crds
      install "$step" --wait --timeout 5m
      ;;
    plugin-barman-cloud)
      apply "$step"
      wait_for cnpg-system deployment/barman-cloud
      ;;
    # Not waited for: Grafana starts once an overlay has made its password.
    kube-prometheus-stack) install "$step" ;;
    argocd)
      apply "$step" --force-conflicts
      wait_for argocd deployment/argocd-server
      ;;
  esac
done
