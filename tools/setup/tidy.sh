#!/bin/bash
# tidy.sh: rules of this repository that no compiler checks. Prints each breach as FILE:LINE: and exits with 1 if there is one.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.." || exit

broken=0
# rule TEXT: prints the breaches that come in on standard input, under TEXT.
rule() {
  local found
  found=$(cat)
  [ -n "$found" ] || return 0
  printf '%s\n%s\n' "$1:" "$found" | sed '2,$s/^/  /'
  broken=1
}
# Files that git knows or would take.
files() { git ls-files -co --exclude-standard -- "$@" | while read -r file; do [ ! -f "$file" ] || printf '%s\n' "$file"; done; }
# code PATTERN FILES...: lines of Rust that match PATTERN, comments aside.
code() {
  local pattern=$1
  shift
  [ $# = 0 ] || grep -nHE "$pattern" "$@" | grep -vE '^[^:]+:[0-9]+:[[:space:]]*//'
}

mapfile -t rust < <(files '*.rs')
mapfile -t safe_rust < <(files '*.rs' | grep -v '^nvmf-io/')
mapfile -t suites < <(files 'tests/guest/*.sh')
mapfile -t all < <(files . ':!Cargo.lock' | xargs -d '\n' grep -lI '' 2>/dev/null)

rule "'unsafe' outside nvmf-io, the one crate that may" < <(code '\bunsafe\b' "${safe_rust[@]}")
rule 'unfinished: a missing part refuses with an error that says so' < <(code '\b(todo|unimplemented|dbg)!' "${rust[@]}")
rule "a Rust file begins with '//!' and what lives there" < <(for file in "${rust[@]}"; do head -n 1 "$file" | grep -q '^//!' || echo "$file:1:"; done)
# The character before keeps URLs and longer paths apart; the class keeps this line from matching itself.
rule 'the path of one particular machine' < <(grep -nE '(^|[^A-Za-z0-9_.~/-])/(work|root|hom[e]/[a-z]+)/' "${all[@]}")
rule 'a merge that was not finished' < <(grep -nE '^(<<<<<<<|>>>>>>>) ' "${all[@]}")
rule "a guest suite says how it runs: '# guest: --uml', for one" < <(for file in "${suites[@]}"; do sed -n 1,20p "$file" | grep -q '^# guest: ' || echo "$file:1:"; done)

[ "$broken" = 0 ] && echo "${#all[@]} files, ${#rust[@]} of them Rust: tidy"
exit "$broken"
