# SPDX-License-Identifier: Apache-2.0
# bash completion of doppel(1)

_doppel_img_formats="raw qcow2 vdi vhdx vpc vmdk luks parallels ova qed"
_doppel_img_commands="create info check convert compare map measure resize
    rebase commit snapshot amend bitmap dd bench serve"

_doppel_run_value() { # completes the value of the option $1; false when it takes none we know
    case $1 in
    -k | --kernel | -i | --initrd | --module | --restore | --profile | --profile-symbols) COMPREPLY=($(compgen -f -- "$cur")) ;;
    --cpu) COMPREPLY=($(compgen -W "x86-64-v1 x86-64-v2 x86-64-v3 x86-64-v4 host" -- "$cur")) ;;
    --time) COMPREPLY=($(compgen -W "real virtual" -- "$cur")) ;;
    --engine) COMPREPLY=($(compgen -W "auto kvm translator interpreter" -- "$cur")) ;;
    --console | --virtio-console) COMPREPLY=($(compgen -W "stdio pty file: socket: none" -- "$cur")) ;;
    --net) COMPREPLY=($(compgen -W "none user user,forward=tcp:2222:22" -- "$cur")) ;;
    --restore-clock) COMPREPLY=($(compgen -W "catch-up continue" -- "$cur")) ;;
    --log) COMPREPLY=($(compgen -W "trace debug info warning error off" -- "$cur")) ;;
    -a | --append | -m | --memory | -c | --cpus | --name) COMPREPLY=() ;;
    *) return 1 ;;
    esac
}

_doppel_names() {
    doppel ls 2>/dev/null | sed '1d; s/ .*//'
}

_doppel_vm() { # the commands for a VM that runs
    local words
    case $1 in
    status) words=--json ;;
    save) words=--stop ;;
    stop) words="--now --timeout" ;;
    pause | resume) words= ;;
    *) return ;;
    esac
    if [ "$1" = save ] && [ "$COMP_CWORD" -eq 3 ]; then
        COMPREPLY=($(compgen -f -- "$cur"))
    else
        COMPREPLY=($(compgen -W "$words $(_doppel_names)" -- "$cur"))
    fi
}

_doppel() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "run img ls status pause resume save stop --help --version" -- "$cur"))
    elif [ "${COMP_WORDS[1]}" = img ] && [ "$COMP_CWORD" -eq 2 ]; then
        COMPREPLY=($(compgen -W "$_doppel_img_commands" -- "$cur"))
    elif [ "${COMP_WORDS[1]}" = img ] && [[ $prev = -[fOF] ]]; then
        COMPREPLY=($(compgen -W "$_doppel_img_formats" -- "$cur"))
    elif [ "${COMP_WORDS[1]}" = img ]; then
        COMPREPLY=($(compgen -f -- "$cur"))
    elif [ "${COMP_WORDS[1]}" = run ] && ! _doppel_run_value "$prev"; then
        COMPREPLY=($(compgen -W "--kernel --initrd --append --module --memory --cpus --cpu
            --engine --time --console --disk --object --net --rng --virtio-console --name --no-reboot --debug-exit
            --check --translator --stats --profile --profile-symbols --restore --restore-clock
            --dry-run --log --help" -- "$cur"))
    elif [ "${COMP_WORDS[1]}" != run ]; then
        _doppel_vm "${COMP_WORDS[1]}"
    fi
}

complete -o filenames -F _doppel doppel
