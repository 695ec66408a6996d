#!/bin/sh
# Allow wal2json where the server asks (a parameter since the minor releases of August 2026), then start as the base image does.
set -eu

plugins=${OUTPUT_PLUGINS_CONF:-/etc/postgresql/output_plugins.conf}
# A server that does not know the parameter refuses to start with it, so ask the binary. Setting it replaces the
# server's own list, hence the first two names.
if postgres --describe-config | grep -q '^output_plugin_libraries	'; then
    echo "output_plugin_libraries = 'pgoutput, test_decoding, wal2json'" >"$plugins"
else
    rm -f "$plugins"
fi

exec docker-entrypoint.sh "$@"
