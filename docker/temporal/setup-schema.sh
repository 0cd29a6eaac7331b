#!/bin/sh
# Makes Temporal's two databases and brings them to the schema of this server version; what is there already is kept.
# Where the database is comes from SQL_HOST, SQL_PORT, SQL_USER and SQL_PASSWORD, which the tool reads itself.
set -eu

prepare() { # database, schema
    temporal-sql-tool --plugin postgres12 --database "$1" create-database
    temporal-sql-tool --plugin postgres12 --database "$1" setup-schema --version 0.0
    temporal-sql-tool --plugin postgres12 --database "$1" update-schema --schema-name "postgresql/v12/$2"
}

prepare "${TEMPORAL_DATABASE:-temporal}" temporal
prepare "${TEMPORAL_VISIBILITY_DATABASE:-temporal_visibility}" visibility
