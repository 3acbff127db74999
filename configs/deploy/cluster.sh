#!/usr/bin/env bash
# Starts or stops a Ray cluster of one machine: `make cluster` and `make cluster-stop`.
#
# Its job server listens on loopback and wants a token. Ray's inner ports want it too, because they listen on every
# interface. The cluster takes free ports and its own temporary folder, so it can run beside other Ray clusters. It is
# stopped by the id of the process started here, because `ray stop` would end every cluster of the user. Its state lies
# in $CLIPSTREAM_HOME/.ray: pid, temp, token, log, and `env` for the user's shell.
set -euo pipefail

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
mkdir -p "${CLIPSTREAM_HOME:-$project}"
CLIPSTREAM_HOME=$(cd "${CLIPSTREAM_HOME:-$project}" && pwd)
export CLIPSTREAM_HOME
export PATH="$project/.venv/bin:$PATH"
state=$CLIPSTREAM_HOME/.ray

# True while the process started here lives. The name of its temporary folder shows that it is not another process with
# the same id.
is_running() {
    [ -f "$state/pid" ] && ps -ww -o args= -p "$(cat "$state/pid")" 2>/dev/null | grep -qF -- "$(cat "$state/temp")"
}

free_ports() {
    python - <<'PYTHON'
import socket

sockets = [socket.socket() for _ in range(4)]
try:
    sockets[0].bind(("127.0.0.1", 8265))
except OSError:
    pass
for one in sockets:
    if one.getsockname()[1] == 0:
        one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in sockets))
PYTHON
}

write_env() {
    cat >"$state/env" <<ENV
export PATH="$project/.venv/bin:\$PATH"
export CLIPSTREAM_HOME="$CLIPSTREAM_HOME"
export RAY_API_SERVER_ADDRESS="http://127.0.0.1:$1"
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="$state/token"
ENV
}

start() {
    if is_running; then
        echo "cluster: already running; . $state/env, or make cluster-stop" >&2
        exit 1
    fi
    mkdir -p "$state"
    # Not below the project: the path of a socket may have 107 bytes, and Ray needs 65 of them.
    mktemp -d /tmp/clipstream-XXXXXX >"$state/temp"
    (umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$state/token")
    # So that `ray job stop` sends Ctrl-C's signal and gives a training run time for its last checkpoint.
    export RAY_JOB_STOP_SIGNAL=SIGINT RAY_JOB_STOP_WAIT_TIME_S=30
    export RAY_TRAIN_ENABLE_PRINT_PATCH=0 # Ray Train would print each line of a worker twice
    export RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve.proxy.set_up_proxy # for `serve deploy`
    export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0

    # Another program may take a port between the choice and Ray's start: then Ray ends at once, and others are tried.
    for _ in 1 2 3; do
        launch
        await_start && break
        is_alive && break
    done
    if ! grep -q "Ray runtime started" "$state/log"; then
        echo "cluster: Ray did not start; the end of $state/log says why:" >&2
        tail -n 20 "$state/log" >&2
        end_cluster >/dev/null
        exit 1
    fi
    # Only now: a head that starts must not be told of a cluster to join.
    echo "export RAY_ADDRESS=127.0.0.1:$gcs" >>"$state/env"
    echo "cluster ready: http://127.0.0.1:$dashboard"
    printf '  %-34s  %s\n' \
        ". ${state#"$PWD"/}/env" "in each shell, once: the address and the token, .venv first on PATH" \
        "ray job submit -- python -m trainer" "train; --working-dir . before the dashes uploads your edits" \
        "ray get-auth-token" "after the first line: the token that the page above asks for" \
        "make cluster-stop" "when done"
}

launch() {
    read -r dashboard gcs client agent < <(free_ports)
    write_env "$dashboard"
    # shellcheck source=/dev/null
    . "$state/env"
    : >"$state/log"
    set -m # a process group of its own, which Ctrl-C in this terminal does not reach
    nohup ray start --head --block --disable-usage-stats --port "$gcs" \
        --dashboard-host 127.0.0.1 --dashboard-port "$dashboard" --dashboard-agent-listen-port "$agent" \
        --ray-client-server-port "$client" --temp-dir "$(cat "$state/temp")" >"$state/log" 2>&1 </dev/null &
    echo $! >"$state/pid"
    set +m
}

await_start() {
    for _ in $(seq 240); do
        grep -q "Ray runtime started" "$state/log" && return
        is_alive || return 1
        sleep 0.5
    done
    return 1
}

# For the process just started, whose arguments are still those of this script until Ray takes its place.
is_alive() {
    kill -0 "$(cat "$state/pid")" 2>/dev/null
}

end_cluster() {
    said="no cluster of this folder is running"
    if is_running; then
        pid=$(cat "$state/pid")
        said="stopped the cluster (process $pid)"
        kill -TERM "$pid"
        for _ in $(seq 60); do
            is_running || break
            sleep 0.5
        done
        if is_running; then kill -KILL -- "-$pid"; fi
    fi
    if [ -f "$state/temp" ]; then rm -rf "$(cat "$state/temp")"; fi
    rm -f "$state"/{pid,temp,token,env,log}
    rmdir "$state" 2>/dev/null || true
    echo "$said"
}

stop() {
    end_cluster
    if [ -n "${RAY_API_SERVER_ADDRESS:-}" ]; then
        echo "this shell still names it; before \`python -m trainer\` without a cluster, or close the shell:"
        echo "  unset RAY_ADDRESS RAY_API_SERVER_ADDRESS RAY_AUTH_MODE RAY_AUTH_TOKEN_PATH"
    fi
}

case "${1:-}" in
    start) start ;;
    stop) stop ;;
    *) echo "usage: $0 start|stop" >&2 && exit 2 ;;
esac
