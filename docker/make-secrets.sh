#!/bin/sh
# Makes what docker-compose.yml must not contain: `.env` with PostgreSQL's password. What is there already is kept.
set -eu
umask 077
cd "$(dirname "$0")/.."

random() { LC_ALL=C tr -dc 'A-Za-z0-9' </dev/urandom | head -c 43; }

[ -e .env ] || printf 'POSTGRES_PASSWORD=%s\n' "$(random)" >.env
