# The two commands of the README are 'make up' and 'make test'.

SHELL := /bin/bash
PATH  := $(PATH):/usr/local/go/bin
export PATH
export CGO_CFLAGS := -O2 -g -Wno-deprecated-declarations # go-nvml binds what NVIDIA has deprecated

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
ARCH    := $(shell dpkg --print-architecture 2>/dev/null || uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')
LDFLAGS := -s -w -X main.version=$(VERSION)
STATIC   = CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)'
CGO      = CGO_ENABLED=1 $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)'

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOSEC       := github.com/securego/gosec/v2/cmd/gosec@v2.30.0
GITLEAKS    := github.com/zricethezav/gitleaks/v8@v8.30.1
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.9.0
VULNDB      := golang.org/x/vulndb@v0.0.0-20261105234957-e22db6528018
CYCLONEDX   := github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0
PROCS       := $(shell nproc)

# Cross compiler of the NVML child, by architecture.
CC_amd64 := $(if $(filter amd64,$(ARCH)),gcc,x86_64-linux-gnu-gcc)
CC_arm64 := $(if $(filter arm64,$(ARCH)),gcc,aarch64-linux-gnu-gcc)

# Systems of people's own machines, which get the CLI.
CLI := darwin-amd64 darwin-arm64 windows-amd64

.DEFAULT_GOAL := help
.PHONY: help up down build dl release desktop-image browser test e2e chaos gpu-check bare lint audit bench bench-quick clean

help: ## what there is to make
	@echo "RemoteGPU: one private GPU cloud from machines behind NAT."
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-20s %s\n", $$1, $$2 }'
	@echo
	@echo "Variables: RG_HTTPS_PORT (8443), RG_SSH_PORT (2222), RG_MQTT_PORT (8883), RG_RUN (run)"

up: ## a server, this machine as its host, a first environment with a shell
	@deploy/up.sh

down: ## stop what 'make up' started; nothing is lost
	@deploy/down.sh

build: ## programs of this machine, in bin/
	@mkdir -p bin
	$(STATIC) -o bin/remotegpu ./control
	$(STATIC) -o bin/remotegpu-agent ./edge-agent
	$(STATIC) -o bin/remotegpu-helper ./edge-agent/helper
	$(CGO) -o bin/remotegpu-nvml ./edge-agent/nvml

dl: build ## what the server hands to hosts of this architecture, in run/dl
	@installers/sign.sh $${RG_RUN:-run}/dl linux-$(ARCH)=bin

release: dist/amd64 dist/arm64 $(CLI:%=dist/cli/%) ## signed programs for Linux, the CLI for macOS and Windows, and what they are made of (SBOM), in dist/
	$(GO) run $(CYCLONEDX) mod -json -licenses -std -noserial -output dist/sbom.cdx.json .
	@installers/sign.sh dist linux-amd64=dist/amd64 linux-arm64=dist/arm64 $(foreach system,$(CLI),$(system)=dist/cli/$(system))
	@rm -rf dist/amd64 dist/arm64 dist/cli
	@find dist -type f | sort | xargs ls -lh | awk '{ print $$5 "\t" $$9 }'

.PHONY: dist/amd64 dist/arm64
dist/amd64 dist/arm64: dist/%:
	@mkdir -p $@
	GOOS=linux GOARCH=$* $(STATIC) -o $@/remotegpu ./control
	GOOS=linux GOARCH=$* $(STATIC) -o $@/remotegpu-agent ./edge-agent
	GOOS=linux GOARCH=$* $(STATIC) -o $@/remotegpu-helper ./edge-agent/helper
	@if command -v $(CC_$*) >/dev/null; then \
		set -x; CC=$(CC_$*) GOOS=linux GOARCH=$* $(CGO) -o $@/remotegpu-nvml ./edge-agent/nvml; \
	else \
		echo "no $(CC_$*): the release for $* comes without remotegpu-nvml, so its hosts see no GPUs"; \
	fi

.PHONY: $(CLI:%=dist/cli/%)
$(CLI:%=dist/cli/%): dist/cli/%:
	@mkdir -p $@
	GOOS=$(word 1,$(subst -, ,$*)) GOARCH=$(word 2,$(subst -, ,$*)) $(STATIC) -o $@/remotegpu$(if $(findstring windows,$*),.exe) ./control

desktop-image: ## an image with a desktop that is reached by RDP, in run/images
	@deploy/deps.sh up >&2
	@GO=$(GO) deploy/images/build.sh desktop $${RG_RUN:-run}/images

browser: ## the pages that tests open in Chromium, in e2e/browser/dist
	@cd e2e/browser && { cmp -s package-lock.json node_modules/.locked || { npm ci --ignore-scripts --no-audit --no-fund && cp package-lock.json node_modules/.locked; }; } && npm run --silent build -- --logLevel warn

test: ## every test: Go with the race detector, scripts, end to end
	@deploy/deps.sh test
	$(GO) vet ./...
	shellcheck $$(git ls-files '*.sh' .ci)
	$(GO) test -race -p $(PROCS) -timeout 15m ./...
	@$(MAKE) --no-print-directory e2e

e2e: ## the end-to-end tests alone: real programs, namespaces, containers
	@deploy/deps.sh test
	@$(MAKE) --no-print-directory dl browser desktop-image
	RG_E2E=1 $(GO) test -count=1 -timeout 60m ./e2e/...

chaos: ## random faults and invariants: SEED=1 MINUTES=5 HOSTS=2 AGENTS=0 SERVERS=1 BROKERS=0; a report in run/chaos-report.md
	@deploy/deps.sh test
	@$(MAKE) --no-print-directory dl
	@mkdir -p $${RG_RUN:-run}
	RG_E2E=1 RG_CHAOS_SEED=$(SEED) RG_CHAOS_MINUTES=$(MINUTES) RG_CHAOS_HOSTS=$(HOSTS) RG_CHAOS_AGENTS=$(AGENTS) RG_CHAOS_SERVERS=$(SERVERS) RG_CHAOS_BROKERS=$(BROKERS) RG_CHAOS_REPORT=$(abspath $(or $(RG_RUN),run))/chaos-report.md \
		$(GO) test -count=1 -timeout $$(awk 'BEGIN { print int(2 * $(MINUTES)) + 15 }')m -run '^TestChaos$$' -v ./e2e

chaos: SEED ?= 1
chaos: MINUTES ?= 5
chaos: HOSTS ?= 2
chaos: AGENTS ?= 0
chaos: SERVERS ?= 1
chaos: BROKERS ?= 0

gpu-check: ## what only a machine with NVIDIA's driver can prove: NVML, CDI, a container that computes, the main job
	@test -e /dev/nvidiactl || { echo "gpu-check: this machine has no NVIDIA driver (no /dev/nvidiactl)" >&2; exit 1; }
	@deploy/deps.sh gpu
	@$(MAKE) --no-print-directory dl
	$(GO) test -count=1 -v -run OfThisMachine ./edge-agent/nvml
	$(GO) test -count=1 -v -run 'RealGPU|WithoutGPUs' ./edge-agent/ctr
	RG_E2E=1 $(GO) test -count=1 -v -timeout 10m -run 'TestGPU$$' ./e2e

bare: ## README's first command on a Debian machine with nothing installed but git, make and Go
	@deploy/bare.sh

lint: ## gofmt, vet, staticcheck, shellcheck
	@deploy/deps.sh lint
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); \
		[ -z "$$unformatted" ] || { echo "not formatted, run gofmt -w:"; echo "$$unformatted"; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	shellcheck $$(git ls-files '*.sh' .ci)

audit: ## known holes, risky code, secrets in the history, licences; what is accepted stands in deploy/audit/accepted.txt
	$(GO) run $(GITLEAKS) git --no-banner --redact -v .
	$(GO) test -count=1 ./deploy/licences
	$(GO) run ./deploy/audit -gosec $(GOSEC) -govulncheck $(GOVULNCHECK) -vulndb $(VULNDB)

bench: ## all benchmarks: a table, and run/bench.json
	@deploy/deps.sh test
	@$(MAKE) --no-print-directory build browser desktop-image
	$(GO) run ./e2e/bench

bench-quick: ## the same, less often repeated
	@deploy/deps.sh test
	@$(MAKE) --no-print-directory build browser desktop-image
	$(GO) run ./e2e/bench -quick

clean: ## remove what was built; run/ with its data stays
	rm -rf bin dist
