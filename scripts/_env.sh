# Sourced by the scripts beside it: finds Python, keeps .venv equal to the lock files, and says what is missing.
# Sets root, venv and python. Installs into the checkout only; Debian packages only where a script asks for them.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
python=$venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK=1
# Byte code as an installation has it: without, each start of a daemon compiles all of walstream anew.
unset PYTHONDONTWRITEBYTECODE

fail() {
    printf 'scripts/%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

say() {
    printf '%s\n' "--- $*" >&2
}

is_root() {
    [ "$(id -u)" -eq 0 ]
}

# Install Debian packages, or fail with the command that does.
apt_install() {
    if ! command -v apt-get >/dev/null; then
        fail "missing: $*. Install it with this system's package manager."
    fi
    is_root || fail "missing: $*. Run: sudo apt-get install -y $*"
    say "apt-get install $*"
    DEBIAN_FRONTEND=noninteractive apt-get -q -y update >&2 || true
    DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends "$@" >&2 ||
        fail "apt-get could not install: $*"
}

find_python() {
    local name
    for name in python3 python3.14 python3.13 python3.12 python3.11; do
        if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            command -v "$name"
            return
        fi
    done
    fail "Python 3.11 or newer is needed, and none of python3, python3.11 ... python3.14 is one."
}

make_venv() {
    local base
    base=$(find_python)
    if ! "$base" -c 'import ensurepip, venv' 2>/dev/null; then
        # Debian keeps these in a package of their own.
        apt_install "$("$base" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    fi
    say "making .venv with $base"
    rm -rf "$venv"
    "$base" -m venv "$venv" || fail "cannot make $venv"
}

# A stamp names the lock files, the package's own settings, the place and the interpreter it was made for.
stamp_of() {
    (
        cd "$root" || exit 1
        echo "$root"
        "$python" -V
        cat pyproject.toml requirements/build.txt
        local name
        for name in "$@"; do cat "requirements/$name.txt"; done
    ) | cksum
}

# need_python NAME...: .venv holds requirements/NAME.txt and the package itself, editable.
need_python() {
    local stamp=$venv/stamp-$1 name arguments=()
    [ -w "$root" ] || fail "$root cannot be written by $(id -un). Run as $(stat -c %U "$root"), or make a clone of your own."
    if [ -e "$venv" ] && [ ! -w "$venv" ]; then
        fail "$venv belongs to $(stat -c %U "$venv"). Run as that user, or make a clone of your own."
    fi
    # A virtual environment does not survive being moved or losing its interpreter.
    if ! [ "$("$python" -c 'import sys; print(sys.prefix)' 2>/dev/null)" = "$venv" ]; then
        make_venv
    fi
    if [ "$(cat "$stamp" 2>/dev/null)" = "$(stamp_of "$@")" ]; then
        return
    fi
    for name in "$@"; do arguments+=(-r "$root/requirements/$name.txt"); done
    say "installing $*"
    "$python" -m pip install -q --require-hashes "${arguments[@]}" -r "$root/requirements/build.txt" >&2 ||
        fail "pip could not install $*; see above"
    "$python" -m pip install -q --no-deps --no-build-isolation -e "$root" >&2 || fail "pip could not install the package"
    stamp_of "$@" >"$stamp"
}

has_wal2json() {
    "$python" -c 'import sys; from walstream.shell.commands import server_binaries as s
sys.exit(not any(b.wal2json for b in s.find_binaries()))'
}

need_postgres() {
    has_wal2json && return
    local package="" major
    if command -v apt-cache >/dev/null; then
        if is_root; then apt-get -q -y update >&2 || true; fi
        package=$(apt-cache search --names-only '^postgresql-[0-9]+-wal2json$' | sort -V | tail -n 1 | cut -d' ' -f1)
    fi
    [ -n "$package" ] || fail "a PostgreSQL server with wal2json is needed. Debian: apt-get install postgresql-15-wal2json"
    major=${package#postgresql-}
    major=${major%-wal2json}
    # Without this the package would make and start a cluster of its own.
    if is_root && [ ! -e /etc/postgresql-common/createcluster.conf ]; then
        mkdir -p /etc/postgresql-common
        echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
    fi
    apt_install "postgresql-$major" "$package"
    has_wal2json || fail "installed $package, and still find no server with wal2json"
}
