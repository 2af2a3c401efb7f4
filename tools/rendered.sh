#!/usr/bin/env bash
# rendered.sh BEFORE AFTER: prints how two checkouts differ once rendered, overlay by overlay, as Markdown.
set -euo pipefail
before=$1 after=$2
limit=${LIMIT:-60000} # GitHub takes 65,536 characters in a comment
overlays=(k8s/overlays/local
  # part loadtest
  k8s/components/loadtest
  # end loadtest
  # part azure
  k8s/overlays/{aks,aks/loadtest,aks/restore,aks/restore-check,aks-restored,aks-other-region}
  k8s/overlays/{aks-upgrade,aks/upgrade/forth,aks/upgrade/back,aks/upgrade/in-place}
  # end azure
  # part argocd
  k8s/argocd{,/apps,/goals,/server}
  # end argocd
  k8s/platform/namespaces)

render() { [ ! -d "$1" ] || kubectl kustomize "$1"; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for overlay in "${overlays[@]}"; do
  render "$before/$overlay" >"$work/before" || { echo "error: $before/$overlay does not render" >&2; exit 1; }
  render "$after/$overlay" >"$work/after" || { echo "error: $after/$overlay does not render" >&2; exit 1; }
  if ! diff --unified=3 --label "before" --label "after" "$work/before" "$work/after" >"$work/diff"; then
    lines=$(grep -cE '^[+-]([^+-]|$)' "$work/diff" || true)
    printf '<details><summary>%s: %s lines</summary>\n\n```diff\n' "$overlay" "$lines"
    cat "$work/diff"
    printf '```\n\n</details>\n'
  fi
done >"$work/comment"
if [ ! -s "$work/comment" ]; then
  echo "No overlay renders differently."
elif [ "$(wc -c <"$work/comment")" -gt "$limit" ]; then
  echo "The rendered difference is too long for a comment; it is in the job's log."
  cat "$work/comment" >&2
  grep -oE '<summary>[^<]*' "$work/comment" | sed 's/<summary>/- /'
else
  echo "What this changes in the cluster:"
  cat "$work/comment"
fi
