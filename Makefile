# The doors of the project; docs/HACKING.md says what is behind them.
guest:
	tools/guest/guest setup all
	PROFILE=$(or $(PROFILE),release) tools/guest/suites.sh $(SUITE)

.PHONY: guest
