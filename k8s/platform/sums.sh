#!/usr/bin/env bash
# `make platform-sums` fetches every pinned file and chart, and compares its checksum with
# sums.txt. It adds missing checksums. Review and commit them; from then on, any changed byte is an error.
set -euo pipefail
cd "$(dirname "$0")"

for tool in curl helm sha256sum; do
  command -v "$tool" >/dev/null || { echo "error: $tool is not installed" >&2; exit 1; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
touch sums.txt
failed=0

# compare NAME FILE
compare() {
  local sum known
  sum=$(sha256sum "$2" | cut -d' ' -f1)
  known=$(awk -v name="$1" '$2 == name {print $1}' sums.txt)
  if [ -z "$known" ]; then
    echo "$sum  $1" >>sums.txt
    echo "recorded  $1"
  elif [ "$known" = "$sum" ]; then
    echo "unchanged $1"
  else
    echo "error: $1 has the checksum $sum, but sums.txt has $known" >&2
    failed=1
  fi
}

while read -r url; do
  curl --fail --silent --show-error --location --retry 2 --max-time 120 --output "$work/file" "$url"
  compare "$url" "$work/file"
done < <(grep -rhoE --include=kustomization.yaml 'https://[^ ]+\.yaml' . | sort -u)

while read -r _ _ chart version; do
  from=("$chart")
  case $chart in https://*) from=("${chart##*/}" --repo "${chart%/*}") ;; esac
  rm -rf "$work/chart"
  helm pull "${from[@]}" --version "$version" --destination "$work/chart"
  compare "$chart:$version" "$work/chart"/*.tgz
done < <(grep -v '^#' charts.txt)

exit "$failed"
