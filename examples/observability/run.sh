#!/usr/bin/env bash
# Prometheus with the mesh's alert rules, and Grafana with its dashboards where it is installed,
# until Ctrl-C.
#
#   .venv/bin/expertmesh serve --detach      # or `make serve` in another terminal
#   examples/observability/run.sh            # http://127.0.0.1:9090 and http://127.0.0.1:3000
#
# EXPERTMESH_URL: another mesh. PROMETHEUS_PORT, GRAFANA_PORT: other ports.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
url=${EXPERTMESH_URL:-http://127.0.0.1:8000}
prometheus_port=${PROMETHEUS_PORT:-9090}
grafana_port=${GRAFANA_PORT:-3000}

command -v prometheus >/dev/null || { echo "error: no prometheus here: apt-get install prometheus" >&2; exit 2; }
curl --silent --fail --max-time 10 --noproxy '*' --output /dev/null "$url/metrics" ||
    { echo "error: no mesh answers at $url: start one with expertmesh serve, or set EXPERTMESH_URL" >&2; exit 2; }

work=$(mktemp -d)
pids=()
finish() {
    trap - EXIT INT TERM
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 0' INT TERM

target=${url#*://}
sed -e "s|RULES|$root/dashboards/prometheus/rules.yml|" -e "s|TARGET|\"${target%%/*}\"|" \
    "$here/prometheus.yml" >"$work/prometheus.yml"
prometheus --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/data" \
    --web.listen-address="127.0.0.1:$prometheus_port" --log.level=warn &
pids+=($!)
echo "Prometheus: http://127.0.0.1:$prometheus_port (alerts: /alerts), scrapes $url/metrics"

grafana=$(command -v grafana-server || true)
if [ -n "$grafana" ]; then
    mkdir -p "$work/provisioning/datasources" "$work/provisioning/dashboards"
    cat >"$work/provisioning/datasources/prometheus.yml" <<EOF
apiVersion: 1
datasources:
  - {name: Prometheus, type: prometheus, access: proxy, url: "http://127.0.0.1:$prometheus_port", isDefault: true}
EOF
    cat >"$work/provisioning/dashboards/expertmesh.yml" <<EOF
apiVersion: 1
providers:
  - {name: ExpertMesh, type: file, options: {path: "$root/dashboards/grafana"}}
EOF
    GF_SERVER_HTTP_ADDR=127.0.0.1 GF_SERVER_HTTP_PORT=$grafana_port GF_PATHS_DATA="$work/grafana" \
        GF_PATHS_LOGS="$work/grafana" GF_PATHS_PROVISIONING="$work/provisioning" GF_LOG_LEVEL=warn \
        GF_AUTH_ANONYMOUS_ENABLED=true GF_ANALYTICS_REPORTING_ENABLED=false GF_ANALYTICS_CHECK_FOR_UPDATES=false \
        "$grafana" --homepath "${GRAFANA_HOME:-/usr/share/grafana}" &
    pids+=($!)
    echo "Grafana: http://127.0.0.1:$grafana_port (Dashboards)"
else
    echo "Grafana is not installed: its dashboards are in $root/dashboards/grafana, to be imported by hand"
fi
wait -n
