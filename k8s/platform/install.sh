#!/usr/bin/env bash
# Installs the pinned operators into the current cluster, in the order of their dependencies. Running it again is safe.
set -euo pipefail
cd "$(dirname "$0")"

usage() {
  cat <<'HELP'
usage: k8s/platform/install.sh [--dry-run] local | aks | gitops | STEP…

  local    everything except backups and Argo CD, for overlays/local
  # part azure
  aks      everything
  # end azure
  # part argocd
  gitops   only Argo CD, which installs the rest (k8s/argocd)
  # end argocd
  STEP…    one or more of: namespaces gateway-api prometheus-operator-crds cert-manager cloudnative-pg external-secrets
           nginx-gateway-fabric plugin-barman-cloud kube-prometheus-stack argocd

  --dry-run  print the commands without running them
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
    # part azure
    aks) steps+=("${ORDER[@]}") ;;
    # end azure
    # part argocd
    gitops) steps+=(namespaces argocd) ;;
    # end argocd
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

# apply FOLDER [OPTION…]: applies server-side, because the CRDs are too large for a client-side apply
apply() {
  run kubectl apply --server-side --kustomize "$@"
}

# install RELEASE [OPTION…]: installs or upgrades a Helm release from charts.txt
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
  echo "error: charts.txt has no release $release" >&2
  exit 1
}

# settle NAMESPACE WORKLOAD…: waits until the rollout of each workload is complete
settle() {
  local namespace=$1 workload
  shift
  for workload in "$@"; do
    # An operator needs some time to create its objects.
    run kubectl --namespace "$namespace" wait --for=create "$workload" --timeout=120s
    run kubectl --namespace "$namespace" rollout status "$workload" --timeout=300s
  done
}

# know CRD…: waits until the API server serves the kinds of these CRDs
know() {
  run kubectl wait --for=condition=Established --timeout=60s "${@/#/crd/}"
}

# The namespace of the current step, for the hint below.
namespace=
trap 'hint $? >&2' EXIT
hint() {
  [ "$1" != 0 ] && [ -n "${step:-}" ] || return 0
  echo "error: step $step did not finish; all earlier steps are complete. To find the cause, run:"
  echo "  kubectl --namespace ${namespace:-default} get pods,events"
  echo "Then run this script again. It keeps everything that is already installed."
}

number=0
for step in "${steps[@]}"; do
  number=$((number + 1))
  echo "# $step ($number of ${#steps[@]})"
  case $step in
    namespaces) apply "$step" ;;
    gateway-api)
      apply "$step"
      know gateways.gateway.networking.k8s.io httproutes.gateway.networking.k8s.io
      ;;
    prometheus-operator-crds)
      apply "$step"
      know servicemonitors.monitoring.coreos.com podmonitors.monitoring.coreos.com prometheusrules.monitoring.coreos.com
      ;;
    cert-manager | external-secrets)
      namespace=$step
      install "$step" --wait --timeout 5m
      ;;
    cloudnative-pg)
      namespace=cnpg-system
      apply "$step"
      know clusters.postgresql.cnpg.io
      settle "$namespace" deployment/cnpg-controller-manager
      ;;
    nginx-gateway-fabric)
      namespace=nginx-gateway
      apply nginx-gateway-fabric/crds
      know nginxproxies.gateway.nginx.org snippetsfilters.gateway.nginx.org
      install "$step" --wait --timeout 5m
      ;;
    # part azure
    plugin-barman-cloud)
      namespace=cnpg-system
      apply "$step"
      know objectstores.barmancloud.cnpg.io
      settle "$namespace" deployment/barman-cloud
      ;;
    # end azure
    kube-prometheus-stack)
      namespace=monitoring
      install "$step"
      # The script does not wait for Grafana, which starts only after an overlay has created its password.
      settle "$namespace" deployment/kube-prometheus-stack-operator deployment/kube-prometheus-stack-kube-state-metrics
      settle "$namespace" statefulset/prometheus-kube-prometheus-stack-prometheus statefulset/alertmanager-kube-prometheus-stack-alertmanager
      ;;
    # part argocd
    argocd)
      namespace=argocd
      apply "$step" --force-conflicts
      know applications.argoproj.io appprojects.argoproj.io
      settle "$namespace" deployment/argocd-redis deployment/argocd-repo-server deployment/argocd-server \
        deployment/argocd-dex-server deployment/argocd-applicationset-controller deployment/argocd-notifications-controller statefulset/argocd-application-controller
      ;;
    # end argocd
  esac
done
step=
