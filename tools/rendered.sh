#!/usr/bin/env bash
# rendered.sh BEFORE AFTER: what differs between two checkouts in the cluster, overlay by overlay, as Markdown.
set -euo pipefail
before=$1 after=$2
limit=60000 # GitHub takes 65,536 characters in a comment
overlays=(k8s/overlays/local k8s/overlays/aks k8s/overlays/aks-restored k8s/argocd/goals k8s/argocd/server k8s/argocd/apps k8s/components/loadtest)

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
  echo "The rendered difference is longer than a comment may be; the job's log has it."
  cat "$work/comment" >&2
  grep -oE '<summary>[^<]*' "$work/comment" | sed 's/<summary>/- /'
else
  echo "What this changes in the cluster:"
  cat "$work/comment"
fi
