#!/bin/sh
# Makes what docker-compose.yml must not contain: `.env` with PostgreSQL's password, and the token files of you and of factory-1. What is
# there already is kept.
set -eu
umask 077
cd "$(dirname "$0")/.."

random() { LC_ALL=C tr -dc 'A-Za-z0-9' </dev/urandom | head -c 43; }

[ -e .env ] || printf 'POSTGRES_PASSWORD=%s\n' "$(random)" >.env

# The containers run as another user than you. The directory keeps everybody else on this machine out; inside a
# container only its own files are seen.
mkdir -p secrets
chmod 700 secrets
[ -e secrets/token ] || printf 'gfu_%s\n' "$(random)" >secrets/token
[ -e secrets/factory-1-token ] || printf 'gff_%s\n' "$(random)" >secrets/factory-1-token
chmod 644 secrets/token secrets/factory-1-token
