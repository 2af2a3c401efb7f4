#!/usr/bin/env bash
# PostgreSQL as the service expects it: a role and a database from the Secret goals-db-app, and only TLS from outside.
set -euo pipefail
secret=/run/secrets/app
export PGDATA=/var/lib/postgresql/data/pgdata

if [ ! -e "$PGDATA/made" ]; then
  rm -rf "$PGDATA" # an unfinished one
  initdb --encoding=UTF8 --username=postgres --auth=scram-sha-256 --pwfile=<(head -c 32 /dev/urandom | base64) >/dev/null
  printf '%s\n' 'local all all trust' 'hostssl all all all scram-sha-256' >"$PGDATA/pg_hba.conf"
  postgres --single postgres >/dev/null <<SQL
CREATE ROLE goals_user LOGIN PASSWORD '$(cat $secret/password)'
CREATE DATABASE goals_database OWNER goals_user
SQL
  touch "$PGDATA/made"
fi
chmod 700 "$PGDATA" # the volume gives its group permissions that PostgreSQL does not allow
exec postgres -c listen_addresses='*' -c unix_socket_directories=/tmp -c max_connections=200 -c shared_buffers=64MB \
  -c ssl=on -c ssl_cert_file=/run/secrets/server/tls.crt -c ssl_key_file=/run/secrets/server/tls.key
