# The doors of the project; docs/HACKING.md says what is behind them.
#
#   make check      form, lints, unit tests, documents, scripts
#   make test       all that a change must pass, from a bare machine; ends with `N passed, N failed`
#   make guest      the suites in guests; SUITE="name name" for some, PROFILE=debug for debug builds
#   make soak       the long forms of tests and suites
#   make demo, make bench

SUITE =
PROFILE = release
export PROFILE

check:
	tools/setup/check.sh

test:
	tools/setup/test.sh

guest:
	tools/guest/guest setup all
	tools/guest/suites.sh $(SUITE)

soak:
	tools/setup/soak.sh $(SUITE)

demo:
	tools/demo/demo.sh

bench:
	benches/bench.sh

clean:
	cargo clean
	tools/guest/guest clean

.PHONY: check test guest soak demo bench clean
