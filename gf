#!/bin/sh
# Gigafactory's one entry: makes a private Python environment from requirements.lock, then is the command line.
#
# Needs Python >= 3.11 and git. All that it obtains lies in a cache outside this checkout and can be deleted at any
# time: ${GIGAFACTORY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/gigafactory}. Settings: GIGAFACTORY_PYTHON (which
# interpreter), GIGAFACTORY_CACHE (where). Standard output belongs to the command; what is said here goes to stderr.
#
# How a half-made environment is kept from being used: each build has a directory of its own, and only when it is
# finished is its path published by a rename, in $cache/ready-<key>. The mkdir lock below saves work, not correctness:
# two builders at once (a stale lock taken over twice, say) end in two good environments, one of them published.
set -eu

say() { printf '%s\n' "gf: $*" >&2; }
fail() {
    say "$*"
    exit 69 # EX_UNAVAILABLE: something that this machine must have is missing
}

# --- the quick path: a few forks, no Python -------------------------------------------------------

find_root() { # Set root to the checkout's directory, whatever links lead to this file.
    script=$0
    while [ -h "$script" ]; do
        link=$(readlink "$script")
        case $link in
            /*) script=$link ;;
            *) script=${script%/*}/$link ;;
        esac
    done
    case $script in
        /*) root=${script%/*} ;;
        */*) root=$PWD/${script%/*} ;;
        *) root=$PWD ;;
    esac
    case $root in
        */. | */.. | */./* | */../*) root=$(cd "$root" && pwd -P) ;;
    esac
}

find_cache() {
    if [ -n "${GIGAFACTORY_CACHE:-}" ]; then
        cache=$GIGAFACTORY_CACHE
    elif [ -n "${XDG_CACHE_HOME:-}" ]; then
        cache=$XDG_CACHE_HOME/gigafactory
    elif [ -n "${HOME:-}" ]; then
        cache=$HOME/.cache/gigafactory
    else
        fail "neither HOME nor GIGAFACTORY_CACHE is set; say where the environment may lie: GIGAFACTORY_CACHE=/some/dir"
    fi
    case $cache in
        /*) ;;
        *) cache=$PWD/$cache ;;
    esac
}

find_env() { # Set key, and env when a finished environment for this lock, machine type and interpreter exists.
    set -- $({ printf '%s\n' "${GIGAFACTORY_PYTHON:-}"; uname -sm; cat "$root/requirements.lock"; } | cksum)
    key=$1$2
    env=
    if [ -f "$cache/ready-$key" ]; then
        read -r env <"$cache/ready-$key" || env=
        # The interpreter is a link to the system's: an upgrade that took that away makes the environment anew.
        [ -x "$env/bin/python" ] && [ -f "$env/.complete" ] || env=
    fi
}

# --- the first run --------------------------------------------------------------------------------

suits() { # Does $1 run, as a Python >= 3.11? (Version managers put names on PATH that only print an error.)
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 </dev/null
}

find_python() {
    if [ -n "${GIGAFACTORY_PYTHON:-}" ]; then
        python=$GIGAFACTORY_PYTHON
        suits "$python" || fail "GIGAFACTORY_PYTHON=$python is not a working Python >= 3.11; point it at one, or unset it"
        return
    fi
    for python in python3 python3.13 python3.12 python3.11; do
        if command -v "$python" >/dev/null 2>&1 && suits "$python"; then return; fi
    done
    fail "needs Python 3.11 or newer and found none on PATH; install it (Debian/Ubuntu: apt install python3 python3-venv;" \
        "macOS: brew install python@3.13) or set GIGAFACTORY_PYTHON=/path/to/python3"
}

need_git() {
    command -v git >/dev/null 2>&1 ||
        fail "needs git and found none on PATH; install it (Debian/Ubuntu: apt install git; macOS: xcode-select --install)"
}

take_lock() { # Wait until this process holds $lock. A dead holder's is taken over, and a silent one's after ten minutes.
    waited_s=0
    until mkdir "$lock" 2>/dev/null; do
        holder=
        [ -f "$lock/pid" ] && read -r holder <"$lock/pid" || :
        if [ -z "$holder" ]; then
            sleep 1 # between the holder's mkdir and its write of the pid; still empty after that: it died there
            [ -f "$lock/pid" ] || rm -rf "$lock"
        elif [ "$waited_s" -ge 600 ] || ! kill -0 "$holder" 2>/dev/null; then
            rm -rf "$lock"
        else
            [ "$waited_s" -gt 0 ] || say "another gf (process $holder) is preparing the environment; waiting for it"
            waited_s=$((waited_s + 1))
            sleep 1
        fi
    done
    printf '%s\n' $$ >"$lock/pid"
}

clean_up() { # On any exit of a build: stop pip, leave nothing half made.
    status=$?
    trap - EXIT
    if [ -n "$pip_pid" ]; then
        kill "$pip_pid" 2>/dev/null || :
        wait "$pip_pid" 2>/dev/null || :
    fi
    [ -z "$building" ] || rm -rf "$building"
    rm -rf "$lock"
    exit "$status"
}

begin() { # $1: name of the lock. Everything after this is undone by clean_up when it does not finish.
    mkdir -p "$cache" 2>/dev/null || fail "cannot write to $cache; set GIGAFACTORY_CACHE to a directory that you own"
    lock=$cache/.lock-$1
    pip_pid=
    building=
    take_lock
    trap clean_up EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    # What a user set for their own installs must not redirect ours.
    unset PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV PIP_ROOT PIP_DRY_RUN PIP_CONSTRAINT \
        PYTHONHOME PYTHONPATH
    PIP_DISABLE_PIP_VERSION_CHECK=1
    export PIP_DISABLE_PIP_VERSION_CHECK
}

finish() {
    trap - EXIT HUP INT TERM
    rm -rf "$lock"
}

pip_scripts() { # Print the ways to run a pip that came with $python under another interpreter, best first.
    "$python" -c '
import glob, importlib.util, os, sysconfig
spec = importlib.util.find_spec("pip")  # its own: what `pip --python` would start, in one process instead of two
own = [os.path.join(os.path.dirname(spec.origin), "__pip-runner__.py")] if spec and spec.origin else []
roots = [os.path.join(sysconfig.get_path("stdlib"), "ensurepip", "_bundled")]
roots += [sysconfig.get_config_var("WHEEL_PKG_DIR") or "", "/usr/share/python-wheels"]  # where distributions keep it
wheels = [os.path.join(wheel, "pip") for root in roots for wheel in sorted(glob.glob(os.path.join(root, "pip-*.whl")))]
print(*[path for path in own if os.path.exists(path)], *wheels, sep="\n")' </dev/null
}

run_pip() { # Become pip for the environment $env: for a subshell, so that a signal sent to it reaches pip itself.
    case $pip in
        script) exec "$env/bin/python" "$pip_script" "$@" ;;
        inside) exec "$env/bin/python" -m pip "$@" ;;
        *) exec "$pip" --python "$env/bin/python" "$@" ;;
    esac
}

works() { (run_pip --version) >/dev/null 2>&1 </dev/null; }

find_pip() { # Set pip. No environment of ours holds one (it is made --without-pip), and Debian splits ensurepip off.
    pip=script
    IFS='
'
    for pip_script in $(pip_scripts); do
        if works; then break; fi
        pip_script=
    done
    unset IFS
    [ -z "${pip_script:-}" ] || return 0
    for pip in pip3 pip; do
        if works; then return; fi
    done
    if command -v virtualenv >/dev/null 2>&1 && virtualenv -q -p "$python" "$env" >&2 </dev/null; then
        pip=inside
        if works; then return; fi
    fi
    fail "$python has no pip, and there is no other pip that could serve; install one" \
        "(Debian/Ubuntu: apt install python3-venv; Fedora: dnf install python3-pip; elsewhere: python3 -m ensurepip)"
}

count() { grep -c "$1" "$2" 2>/dev/null || :; }

watch_pip() { # On a terminal, show how far process $1 with the log $2 is, out of $3 packages.
    [ -t 2 ] || return 0
    while kill -0 "$1" 2>/dev/null; do
        if grep -q '^Installing collected' "$2" 2>/dev/null; then
            printf '\r    unpacking and compiling %s packages ...   ' "$3" >&2
        else
            printf '\r    fetching, %s of %s packages ...   ' "$(count '^Collecting ' "$2")" "$3" >&2
        fi
        sleep 1
    done
    printf '\r                                                      \r' >&2
}

install() { # $1: lock file. Install exactly what it lists, by hash, wheels only, compiled to bytecode at once.
    log=$env/.pip.log
    run_pip install --require-hashes --only-binary :all: --no-warn-script-location --compile --no-input -r "$1" \
        >"$log" 2>&1 </dev/null &
    pip_pid=$!
    watch_pip "$pip_pid" "$log" "$(count '^[A-Za-z0-9].*==' "$1")"
    status=0
    wait "$pip_pid" || status=$?
    pip_pid=
    [ "$status" -eq 0 ] && return
    tail -n 15 "$log" >&2
    fail "pip could not install ${1##*/} (its last words are above); check the network, a proxy (HTTPS_PROXY) or a" \
        "package mirror (PIP_INDEX_URL), then run the same command again: nothing half made was left behind"
}

make_env() { # Make the environment for $key and publish it. Sets env.
    need_git
    find_python
    begin "$key"
    find_env
    if [ -n "$env" ]; then # another process made it while this one waited
        finish
        return
    fi
    version=$("$python" -c 'import platform as p; print(p.python_version())' </dev/null)
    for building in "$cache/env-"*; do # left by a build that was killed; younger ones may be alive on another machine
        if [ ! -f "$building/.complete" ] && [ -n "$(find "$building" -prune -mtime +0 2>/dev/null)" ]; then
            rm -rf "$building"
        fi
    done
    building=$cache/env-$key-py$version-$$
    env=$building
    say "first run: preparing a private Python environment (once; about 30 MB to fetch, 150 MB on disk)"
    say "  1/3 environment for Python $version in $env"
    "$python" -m venv --without-pip "$env" >&2 </dev/null ||
        fail "$python -m venv failed (its words are above); install the venv module (Debian/Ubuntu: apt install python3-venv)"
    find_pip
    say "  2/3 $(count '^[A-Za-z0-9].*==' "$root/requirements.lock") packages from requirements.lock, each checked by its hash"
    install "$root/requirements.lock"
    : >"$env/.complete"
    printf '%s\n' "$env" >"$cache/.ready-$key.$$"
    mv -f "$cache/.ready-$key.$$" "$cache/ready-$key"
    building=
    finish
    say "  3/3 ready"
}

add_dev() { # For `gf test`: the checkers and test libraries, into the same environment, under a marker of their own.
    set -- $(cksum <"$root/requirements-dev.lock")
    marker=$env/.dev-$1
    [ -f "$marker" ] && return
    begin "dev-$key"
    if [ ! -f "$marker" ]; then
        find_python
        find_pip
        say "adding $(count '^[A-Za-z0-9].*==' "$root/requirements-dev.lock") packages for checks and tests (once)"
        install "$root/requirements-dev.lock"
        : >"$marker"
    fi
    finish
}

# --- main -----------------------------------------------------------------------------------------

find_root
find_cache
find_env
[ -n "$env" ] || make_env
[ "${1:-}" != test ] || add_dev
unset PYTHONHOME # one meant for another interpreter would keep ours from starting
PYTHONPATH=$root GIGAFACTORY_ROOT=$root exec "$env/bin/python" -P -m cli "$@"
