"""`partita completion`: a script that makes a shell complete this command. Root side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from partitions.cli.common import OK, Verbs

if TYPE_CHECKING:
    import argparse

BASH: Final = r"""# partita completion for bash: eval "$(partita completion bash)"
_partita() {
    local line words=("${COMP_WORDS[@]:1:COMP_CWORD}")
    COMPREPLY=()
    while IFS= read -r line; do
        if [[ $line == ":files" ]]; then
            compopt -o default 2>/dev/null || :
            return
        fi
        line=${line%%$'\t'*}
        if [[ $line == */ ]]; then
            compopt -o nospace 2>/dev/null || :
        fi
        COMPREPLY+=("$(printf %q "$line")")
    done < <("${COMP_WORDS[0]}" __complete "${words[@]}" 2>/dev/null)
}
complete -F _partita partita
"""

ZSH: Final = r"""#compdef partita
# partita completion for zsh: eval "$(partita completion zsh)", or this as a file _partita in your fpath
_partita() {
    local line name
    local -a offered branches
    for line in "${(@f)$("${words[1]}" __complete "${(@)words[2,CURRENT]}" 2>/dev/null)}"; do
        [[ -z $line ]] && continue
        if [[ $line == ":files" ]]; then
            compset -P '*='
            _files
            return
        fi
        name=${line%%$'\t'*}
        if [[ $line == */ ]]; then
            branches+=("$line")
        elif [[ $line == *$'\t'* ]]; then
            offered+=("${name//:/\\:}:${line#*$'\t'}")
        else
            offered+=("${name//:/\\:}")
        fi
    done
    compset -P '*='
    (( $#branches )) && compadd -S '' -a branches
    _describe partita offered
}
if [[ $funcstack[1] == _partita ]]; then
    _partita "$@"
else
    compdef _partita partita
fi
"""

FISH: Final = r"""# partita completion for fish: partita completion fish | source
function __partita_complete
    set -l words (commandline -opc) (commandline -ct)
    set -l offered ($words[1] __complete $words[2..] 2>/dev/null)
    if test "$offered" = ":files"
        __fish_complete_path (string replace -r '^--[^=]*=' '' -- (commandline -ct))
    else if string match -q -- '--*=*' (commandline -ct)
        set -l option (string match -r -- '^--[^=]*=' (commandline -ct))
        printf '%s\n' $option$offered
    else
        printf '%s\n' $offered
    end
end
complete -c partita -f -a '(__partita_complete)'
"""

SCRIPTS: Final = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "completion",
        help="print a script that makes your shell complete partita",
        description='Print a script for your shell. In ~/.bashrc: eval "$(partita completion bash)"; in ~/.zshrc, '
        'after compinit: eval "$(partita completion zsh)"; in ~/.config/fish/config.fish: partita completion fish | '
        "source. It completes verbs, options and their values, examples, running hosts, their VMs, and the "
        "paths of what lives in them.",
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=tuple(SCRIPTS), help="which shell")
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Print it."""
    print(SCRIPTS[options.shell], end="")
    return OK
