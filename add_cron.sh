#!/bin/sh
# Puts the nightly upload and report into this user's crontab, shows it, and takes it out again.
#
# What always holds:
#   1. The line stands by itself: absolute paths, its own PATH, umask and log; nothing of this script is needed later.
#   2. cron's clock is the machine's zone, and Debian's cron knows no other. So the line is tried every hour, and goes on
#      only in the hour that begins at --at in UTC: right in any zone, when summer begins or ends, and when the zone is
#      changed. The minute is the one that makes it --at to the minute in the present zone.
#   3. Lines of others stay as they are, byte for byte. Ours end in a mark with the configuration they belong to. They
#      stand before the crontab's first setting, so that no SHELL= or PATH= of others changes them.
#   4. What is running is not started twice: the lock is on the log file, and ends with the process.
#   5. No secret is in the line: they are in the configuration file.
set -eu
export LC_ALL=C

usage() {
    cat <<'END'
Usage: add_cron.sh [install | show | remove] [OPTIONS]

  install   put the nightly line for a configuration into this user's crontab (this is the default)
  show      print what is installed, when it runs next, and the end of its log
  remove    take the lines of a configuration out again

Run it in the directory where `tickcollect run` is started: a relative DATA_DIR is meant from there.

  --config FILE        the configuration  [default: config.json in this directory]
  --data-dir DIR       the data, if it is not where the configuration says
  --at HH:MM           when to run, in UTC  [default: 00:10]
  --delete-after DAYS  let `tickcollect upload` delete local files that old, on proof of their upload
  --no-report          upload only; do not send the report
  --reboot             start `tickcollect run` when the machine starts, too
  --log FILE           where the output goes  [default: nightly.log in this directory]
  --tickcollect FILE   the program  [default: that of the active venv, of PATH, of .venv here
                       or beside this script, of ~/.local/bin]

Exit codes: 0 done; 1 it cannot be done, or nothing is installed (show, remove); 2 a mistake in the command line.
END
}

fail() {
    printf 'Error: %s\n' "$1" >&2
    exit "${2:-1}"
}

warn() { printf 'Warning: %s\n' "$1" >&2; }

# --- What is asked for -------------------------------------------------------------------------------------------------

parse() {
    action=install config='' data_dir='' at=00:10 delete_after='' report=yes reboot=no log='' program=''
    case ${1:-} in install | show | remove) action=$1 && shift ;; esac
    while [ $# -gt 0 ]; do
        case $1 in
        --config | --data-dir | --at | --delete-after | --log | --tickcollect)
            [ $# -ge 2 ] || fail "$1 needs a value; --help tells which" 2
            ;;
        esac
        case $1 in
        --config) config=$2 && shift ;;
        --data-dir) data_dir=$2 && shift ;;
        --at) at=$2 && shift ;;
        --delete-after) delete_after=$2 && shift ;;
        --log) log=$2 && shift ;;
        --tickcollect) program=$2 && shift ;;
        --no-report) report=no ;;
        --reboot) reboot=yes ;;
        -h | --help) usage && exit 0 ;;
        *) fail "there is no option $1; --help lists them" 2 ;;
        esac
        shift
    done
    config=$(absolute "${config:-config.json}")
    [ -z "$data_dir" ] || data_dir=$(absolute "$data_dir")
    case $config$data_dir$log$program$PWD in
    *[[:cntrl:]]*) fail "a path has a line break or another control character in it, which a crontab cannot hold" 2 ;;
    esac
}

# One name for one file, whichever way it is given: a second name would be a second line.
absolute() {
    path=$(case $1 in /*) printf '%s\n' "$1" ;; *) printf '%s\n' "$PWD/$1" ;; esac |
        sed -e 's#//*#/#g' -e ':again' -e 's#/\./#/#' -e 't again' -e 's#\(.\)/$#\1#' -e 's#\(.\)/\.$#\1#')
    case $path/ in
    */../*)
        # The kernel follows links before it goes up, `cd` goes up first: where the two differ, the kernel opens the file.
        above=$(cd "$(dirname "$path")" 2>/dev/null && pwd) || above=$(dirname "$path")
        [ "$above" -ef "$(dirname "$path")" ] || above=$(cd -P "$(dirname "$path")" 2>/dev/null && pwd -P) ||
            above=$(dirname "$path")
        path=${above%/}/${path##*/}
        case $path in */..) path=$(cd "$path" 2>/dev/null && pwd) || path=$above/.. ;; esac
        ;;
    esac
    printf '%s\n' "$path"
}

check_wishes() {
    case $at in
    [01][0-9]:[0-5][0-9] | 2[0-3]:[0-5][0-9]) ;;
    *) fail "--at takes a time of day in UTC such as 00:10, not $at" 2 ;;
    esac
    case $delete_after in *[!0-9]*) fail "--delete-after takes a number of days, not $delete_after" 2 ;; esac
    [ -f "$config" ] || fail "there is no $config; name the configuration with --config FILE" 2
    [ -r "$config" ] || fail "$config may not be read by $(id -un), for whom the line would be" 2
    [ -n "$log" ] || log=nightly$(suffix).log
    log=$(absolute "$log")
    run_log=${log%/*}/run$(suffix).log
    [ -d "${log%/*}" ] || fail "there is no directory ${log%/*} for the log" 2
    [ -w "${log%/*}" ] || fail "$(id -un) may not write to ${log%/*}; name another place with --log FILE" 2
    find_program
}

# Tells two configurations in one directory apart.
suffix() {
    name=${config##*/}
    [ "$name" = config.json ] || printf -- '-%s' "${name%.json}"
    [ -z "$data_dir" ] || printf -- '-%s' "${data_dir##*/}"
}

find_program() {
    for found in "$program" "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/tickcollect}" "$(command -v tickcollect || :)" \
        "$PWD/.venv/bin/tickcollect" "$(absolute "$(dirname "$0")")/.venv/bin/tickcollect" "$HOME/.local/bin/tickcollect"; do
        [ -n "$found" ] || continue
        found=$(absolute "$found")
        if [ -x "$found" ] && [ ! -d "$found" ]; then
            program=$found
            return
        fi
        [ -z "$program" ] || fail "$found is not a program that $(id -un) may run" 2
    done
    fail "tickcollect was not found; install it (pipx install .), or name it with --tickcollect FILE" 2
}

# --- The lines ---------------------------------------------------------------------------------------------------------

# For sh and for cron, where a bare % ends the command.
quoted() {
    case $1 in
    *[!A-Za-z0-9_./:@+=,-]*) printf '%s\n' "$1" | sed -e "s/'/'\\\\''/g" -e "s/%/'\\\\%'/g" -e "s/.*/'&'/" ;;
    *) printf '%s\n' "$1" ;;
    esac
}

unquoted() { sed -e "s/^'\(.*\)'\$/\1/" -e "s/'\\\\%'/%/g" -e "s/'\\\\''/'/g"; }

mark() { printf '# tickcollect:%s %s\n' "$1" "$(printf '%s\n' "$config${data_dir:+ $data_dir}" | sed 's/%/\\%/g')"; }

# 08 would be an octal number
number() { case $1 in 0?) echo "${1#0}" ;; *) echo "$1" ;; esac }

# The minute of the hour in the zone that cron goes by, which TZ does not change: at a time in seconds since 1970.
minute_at() { number "$(env -u TZ date -d "@$1" +%M)"; }

# Seconds from midnight to HH:MM.
since_midnight_s() { echo $(($(number "${1%:*}") * 3600 + $(number "${1#*:}") * 60)); }

# When it is HH:MM UTC today, in seconds since 1970.
today_s() {
    now_s=$(date +%s)
    echo $((now_s - now_s % 86400 + $(since_midnight_s "$1")))
}

# Where it runs, where its output goes, and that it runs once.
surroundings() {
    cat <<END | tr '\n' ' '
umask 027; exec >>$(quoted "$1") 2>&1; date -u +\%FT\%TZ; cd $(quoted "$PWD") || exit 1;
flock -n -E 75 1 || { echo "$2"; exit 75; };
export PATH=$(quoted "${program%/*}:/usr/local/bin:/usr/bin:/bin");
END
}

nightly_line() {
    given="--config $(quoted "$config")${data_dir:+ --data-dir $(quoted "$data_dir")}"
    printf '%s * * * * ' "$(minute_at "$(today_s "$at")")"
    # shellcheck disable=SC2016 # for the shell that cron starts
    printf '[ "$(TZ=UTC%s date +\\%%H)" = 00 ] || exit 0; ' "$at"
    surroundings "$log" 'not started: the run before has not ended yet'
    printf '%s upload %s%s; ' "$(quoted "$program")" "$given" "${delete_after:+ --delete-after $delete_after}"
    [ "$report" = no ] || printf '%s report --send %s ' "$(quoted "$program")" "$given"
    mark nightly
}

reboot_line() {
    given="--config $(quoted "$config")${data_dir:+ --data-dir $(quoted "$data_dir")}"
    printf '@reboot '
    surroundings "$run_log" 'not started: it runs already'
    printf 'exec setsid -f %s run %s ' "$(quoted "$program")" "$given"
    mark reboot
}

# --- The crontab -------------------------------------------------------------------------------------------------------

read_crontab() {
    command -v crontab >/dev/null ||
        fail "this machine has no crontab; install cron (Debian: apt-get install cron), or use the timer in deploy/"
    command -v flock >/dev/null || fail "this machine has no flock; install util-linux"
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    trap 'exit 1' HUP INT TERM
    if crontab -l >"$folder/old" 2>"$folder/said"; then
        return
    fi
    grep -q 'no crontab for' "$folder/said" || fail "$(refusal)"
    : >"$folder/old"
}

refusal() {
    said=$(tr '\n' ' ' <"$folder/said")
    case $said in
    *'not allowed'*) echo "$said- ask for $(id -un) in /etc/cron.allow, or use the timer in deploy/" ;;
    *'too long'*) echo "the line has more characters than cron allows (998); move the program or the data to shorter paths" ;;
    *) echo "crontab says: $said" ;;
    esac
}

write_crontab() {
    if [ -s "$folder/new" ]; then
        crontab "$folder/new" 2>"$folder/said" || fail "$(refusal)"
    elif [ -s "$folder/old" ]; then
        crontab -r
    fi
}

# The crontab without the lines of this configuration.
others() {
    NIGHTLY=$(mark nightly) REBOOT=$(mark reboot) awk '
        function ends_in(mark) { return substr($0, length($0) - length(mark) + 1) == mark }
        !ends_in(" " ENVIRON["NIGHTLY"]) && !ends_in(" " ENVIRON["REBOOT"])' "$folder/old"
}

ours() { grep -E ' # tickcollect:(nightly|reboot) /' "$folder/old" || :; }

install_lines() {
    check_wishes
    read_crontab
    others >"$folder/others"
    log_is_free
    nightly_line >"$folder/lines"
    [ "$reboot" = no ] || reboot_line >>"$folder/lines"
    if grep -q '^[[:space:]]*[A-Za-z_"'\'']' "$folder/others"; then
        cat "$folder/lines" "$folder/others" >"$folder/new"
    else
        cat "$folder/others" "$folder/lines" >"$folder/new"
    fi
    if cmp -s "$folder/old" "$folder/new"; then
        echo "Already in the crontab of $(id -un):"
    else
        write_crontab
        echo "Now in the crontab of $(id -un):"
    fi
    told <"$folder/lines"
    warnings
}

log_is_free() {
    if grep -F -e "exec >>$(quoted "$log") " -e "exec >>$(quoted "$run_log") " "$folder/others" >/dev/null; then
        fail "$log is the log of another configuration in this crontab; name another one with --log FILE" 2
    fi
}

warnings() {
    unseen=$(env | sed -nE 's/^((TICKCOLLECT|AWS)_[A-Z0-9_]*)=.*/\1/p' | paste -s -d ' ' -)
    [ -z "$unseen" ] || warn "cron does not see this shell's $unseen; what is needed belongs into $config"
    trouble=$(cd "$PWD" && "$program" status --config "$config" ${data_dir:+--data-dir "$data_dir"} 2>&1 >/dev/null || :)
    [ -z "$trouble" ] || warn "in $PWD: $trouble"
    cron_runs || warn "$no_cron"
}

no_cron='no cron is running, so nothing will happen; start it: systemctl enable --now cron (or: service cron start)'
cron_runs() { cat /proc/[0-9]*/comm 2>/dev/null | grep -qxE 'cron|crond|fcron'; }

remove_lines() {
    read_crontab
    others >"$folder/new"
    if cmp -s "$folder/old" "$folder/new"; then
        found=$(ours | sed -e 's/.* # tickcollect:[a-z]* //' -e 's/\\%/%/g' | sort -u | paste -s -d ';' -)
        fail "nothing is installed for $config${data_dir:+ with $data_dir}${found:+, but for: $found}"
    fi
    write_crontab
    echo "Taken out of the crontab of $(id -un): $config${data_dir:+ with $data_dir}"
}

# --- What it means -----------------------------------------------------------------------------------------------------

show_lines() {
    read_crontab
    ours >"$folder/lines"
    [ -s "$folder/lines" ] || fail "nothing is installed in the crontab of $(id -un)"
    echo "In the crontab of $(id -un):"
    told <"$folder/lines"
    cron_runs || fail "$no_cron"
}

# Each line with when it runs next and the end of its log.
told() {
    while IFS= read -r line; do
        written=$(printf '%s\n' "$line" | sed -n "s/.* exec >>\(.*\) 2>&1; date .*/\1/p" | unquoted)
        printf '\n  %s\n' "$line"
        case $line in
        @reboot*) echo "  runs when the machine starts; it is not started now" ;;
        *) echo "  runs next $(next_run "$line")" ;;
        esac
        if [ -s "$written" ]; then
            echo "  the end of $written:"
            tail -n 5 "$written" | sed 's/^/    /'
        else
            echo "  its output will be in $written"
        fi
    done
}

# The first minute that cron tries inside the hour that begins at the line's time.
next_run() {
    now_s=$(date +%s)
    due_s=$(today_s "$(printf '%s\n' "$1" | sed -n 's/.*TZ=UTC\([0-9]*:[0-9]*\) .*/\1/p')")
    due_s=$((due_s - 86400))
    while :; do
        tried_s=$((due_s + (${1%% *} - $(minute_at "$due_s") + 60) % 60 * 60))
        [ "$tried_s" -le "$now_s" ] || break
        due_s=$((due_s + 86400))
    done
    printf '%s UTC, %s here\n' "$(date -u -d "@$tried_s" '+%Y-%m-%d %H:%M')" "$(date -d "@$tried_s" '+%Y-%m-%d %H:%M %Z')"
}

parse "$@"
if [ -f "$0" ] && [ -r "$0" ]; then
    exec 8<"$0"
    flock 8 2>/dev/null || : # one at a time: a crontab is read, changed and written
fi
case $action in
install) install_lines ;;
show) show_lines ;;
remove) remove_lines ;;
esac
