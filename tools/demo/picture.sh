#!/bin/bash
# picture.sh - turns the output of a command, on standard input, into an SVG of a terminal on standard output.
#   make -s demo 2>&1 | tools/demo/picture.sh > docs/demo.svg
set -euo pipefail
mapfile -t lines
width=$(printf '%s\n' "${lines[@]}" | awk '{ if (length > w) w = length } END { print w }')
cat <<SVG
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 $((width * 73 / 10 + 32)) $((${#lines[@]} * 16 + 32))" font-family="monospace" font-size="12">
<rect width="100%" height="100%" rx="8" fill="#14181d"/>
SVG
y=28
for line in "${lines[@]}"; do
  colour=#d5dae0
  [[ $line =~ ^[0-9]\.\  ]] && colour=#7fd1ff
  [[ $line == *A/B* ]] && colour=#b8e07f
  line=${line//&/&amp;}
  line=${line//</&lt;}
  line=${line//>/&gt;}
  printf '<text x="16" y="%d" fill="%s" xml:space="preserve">%s</text>\n' "$y" "$colour" "$line"
  y=$((y + 16))
done
echo '</svg>'
