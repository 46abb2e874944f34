# The front door: `make` tells what there is.
.DEFAULT_GOAL := help
.PHONY: help deps build guest lint test soak demo bench man clean

target := $(or $(CARGO_TARGET_DIR),target)

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 16

deps: ## Install what is missing from Debian's packages (as root)
	@integration-tests/deps.sh

build: ## Build netd, vmd and kvmctl into target/debug
	cargo build --workspace --locked

guest: ## Build the test guest's kernel and initramfs into target/guest
	@integration-tests/guest/build.sh target/guest || \
		{ integration-tests/deps.sh --fresh-lists && integration-tests/guest/build.sh target/guest; }

lint: ## Check formatting, clippy, licences and sources of crates
	@integration-tests/lint.sh

test: ## Run all checks and tests (as root; about 25 minutes)
	@integration-tests/run-tests.sh

soak: build guest ## Run the long versions of tests (as root; about an hour)
	@integration-tests/soak.sh

demo: build guest ## Show the four networks with real guests, in namespaces (as root; half a minute)
	@integration-tests/demo.sh $(target)/debug target/guest

bench: guest ## Measure networks, ports and machines, release build (as root)
	cargo build --workspace --locked --release
	@integration-tests/bench.sh $(target)/release target/guest

man: build ## Write manual pages and shell completions into target/man
	@mkdir -p target/man
	@$(target)/debug/kvmctl man target/man
	@for shell in bash zsh fish elvish; do \
		COMPLETE=$$shell $(target)/debug/kvmctl >target/man/kvmctl.$$shell || exit 1; \
	done
	@ls target/man

clean: ## Remove everything that was built
	cargo clean
	rm -rf target
