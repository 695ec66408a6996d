# shellcheck shell=sh
# To be sourced: `. deploy/nself-alias.sh`. Then `nself realtime …`, and `nself service realtime …`, are walstream's
# commands; every other `nself …` is what it was. WALSTREAM names the program, if it is not the one on PATH.

nself() {
    case "${1-} ${2-}" in
        "realtime "*)
            shift
            ;;
        "service realtime")
            shift 2
            ;;
        *)
            command nself "$@"
            return
            ;;
    esac
    "${WALSTREAM:-walstream}" "$@"
}
