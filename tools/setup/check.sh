#!/bin/bash
# check.sh: `make check`: form, lints, unit tests, documentation, scripts. Minutes; needs no guest.
# Sourced by test.sh, which goes on from here.
set -uo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.." || exit
. tools/setup/steps.sh

# Of private items too: those who read it work on the code, and their links are checked as well.
rustdoc() { RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' cargo doc --quiet --workspace --no-deps --document-private-items --locked; }
# The fuzz targets are a workspace of their own.
format() { cargo fmt --all --check && cargo fmt --all --check --manifest-path fuzz/Cargo.toml; }
links() { git ls-files -co --exclude-standard -- '*.md' | xargs -d '\n' cargo run --quiet --locked -p doc-links --; }
scripts() { git ls-files -co --exclude-standard -- '*.sh' .ci/run tools/guest/guest | xargs -d '\n' shellcheck; }

step 'packages to check with' tools/setup/apt.sh build check
step 'format' format
step 'lints' cargo clippy --quiet --workspace --all-targets --locked -- -D warnings
counted 'unit tests' cargo test --quiet --workspace --locked --no-fail-fast
step 'documentation' rustdoc
step 'links in documents' links
step 'shell scripts' scripts
step 'manifests' tools/setup/deploy.py
step 'tidiness' tools/setup/tidy.sh
step 'rust-version' tools/setup/msrv.sh

[ "${BASH_SOURCE[0]}" != "$0" ] || finish
