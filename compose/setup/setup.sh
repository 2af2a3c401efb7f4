#!/bin/sh
# setup: creates random passwords, a private certificate authority, and the certificates that it signs, each in the volume of
# the service that needs it. Existing files stay; a certificate with less than 30 days left is renewed.
#
# Runs as PostgreSQL's account, which must own its private key; the other services read theirs as a group. compose.yaml adds
# these groups to the process, so that chgrp needs no capability.
set -eu
umask 077
cd /setup

GOALS=10001
GATEWAY=101
GRAFANA=0 # the public image runs as 472 in group 0
month=$((30 * 24 * 3600))

say() { echo "setup: $*"; }

# place FILE GROUP MODE: the file's new contents come from standard input and replace it in one step.
place() {
  cat > "$1.new"
  chgrp "$2" "$1.new"
  chmod "$3" "$1.new"
  mv "$1.new" "$1"
}

# quietly COMMAND…: shows the command's output only if it fails.
quietly() {
  said=$("$@" 2>&1) || { say "failed: $*" >&2; echo "$said" >&2; exit 1; }
}

password() { openssl rand -hex 24; }

certify() { # certify FOLDER GROUP MODE NAMES: a key and a certificate for the names, signed by the authority
  if openssl x509 -checkend "$month" -noout -in "$1/tls.crt" > /dev/null 2>&1 &&
    openssl verify -CAfile authority/ca.crt "$1/tls.crt" > /dev/null 2>&1; then
    return
  fi
  quietly openssl req -x509 -new -CA authority/ca.crt -CAkey authority/ca.key -days 365 \
    -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -keyout "$1/tls.key.made" \
    -subj "/CN=${1##*/}" -addext "subjectAltName=$4" -addext basicConstraints=critical,CA:FALSE \
    -addext keyUsage=critical,digitalSignature -addext extendedKeyUsage=serverAuth \
    -out "$1/tls.crt.made"
  place "$1/tls.key" "$2" "$3" < "$1/tls.key.made"
  place "$1/tls.crt" "$2" 644 < "$1/tls.crt.made"
  rm "$1/tls.key.made" "$1/tls.crt.made"
  say "certificate of $1"
}

if [ ! -s authority/ca.crt ]; then
  quietly openssl req -x509 -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -keyout authority/ca.key -days 3650 \
    -subj "/CN=goals private CA" -addext basicConstraints=critical,CA:TRUE,pathlen:0 \
    -addext keyUsage=critical,keyCertSign,cRLSign -out authority/ca.crt.made
  mv authority/ca.crt.made authority/ca.crt
  say 'certificate authority'
fi
place trust/ca.crt 999 644 < authority/ca.crt
certify postgres 999 600 DNS:postgres
certify gateway "$GATEWAY" 640 DNS:localhost,DNS:goals.localhost,DNS:gateway,IP:127.0.0.1,IP:::1

# The same password in two places: for PostgreSQL at its first start, and for the service.
if [ ! -s postgres/goals_password ]; then
  password | place postgres/goals_password 999 600
  say 'password of the database'
fi
place goals/password "$GOALS" 640 < postgres/goals_password
if [ ! -s grafana/password ]; then
  password | place grafana/password "$GRAFANA" 640
  say 'password of Grafana'
fi
say 'done'
