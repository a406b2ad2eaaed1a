# SPDX-License-Identifier: Apache-2.0
# The commands to remember. Each installs the packages it needs (tools/packages.txt) and then
# does one thing.

JOBS         ?= $(shell nproc)
FUZZ_SECONDS ?= 60
PREFIX       ?= /usr/local
DESTDIR      ?=

# Objects are the same wherever the tree stands, so all work trees share ccache's.
export CCACHE_BASEDIR    = $(CURDIR)
export CCACHE_NOHASHDIR  = 1
export CCACHE_SLOPPINESS = pch_defines,time_macros,include_file_mtime,include_file_ctime

release := build/release

# Configures a preset once, and again when the presets change; ninja sees to all else.
build/%/build.ninja: CMakePresets.json
	@tools/install-packages build
	@cmake --preset $* >/dev/null
	@touch $@

.DEFAULT_GOAL := build
.PHONY: help build run test test-full lint format bench fuzz install clean fuzz-packages \
    image-fuzzers

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

build: $(release)/build.ninja ## the executables, in build/bin/
	@tools/install-packages build
	@cmake --build $(release) -j $(JOBS) --target programs
	@ln -sfn release/bin build/bin

run: build ## boot Debian's kernel to a shell, in this terminal
	@tools/install-packages run
	@tools/guest-assets
	build/bin/doppel run --kernel build/assets/vmlinuz --initrd build/assets/initrd-busybox.cpio.gz \
	    --append "console=ttyS0" --memory 512M

test: build image-fuzzers ## the fast tests; T=name runs those whose name contains it
	@tools/install-packages build run test
	@tools/guest-assets kernel busybox i386 virtio patch debian stress third-party
	@cmake --build $(release) -j $(JOBS)
	@tools/run-tests $(release) '$(T)' -LE full -j $(JOBS)

test-full: build image-fuzzers ## all tests: the slow ones and the linters too
	@tools/install-packages build run test lint fuzz
	@tools/guest-assets kernel busybox i386 virtio patch debian stress third-party
	@cmake --build $(release) -j $(JOBS)
	@tools/run-tests $(release) '$(T)' -j $(JOBS)

lint: build ## format, layers, sizes, licence lines
	@tools/install-packages build lint
	@tools/lint/run

format: ## rewrites the C++ sources as .clang-format says
	@tools/install-packages lint
	@git ls-files -z '*.cpp' '*.hpp' '*.c' '*.h' | xargs -0 -r -P $(JOBS) -n 16 clang-format-19 -i

bench: build ## performance, measured against QEMU's TCG
	@tools/install-packages build run bench
	@tools/guest-assets kernel busybox virtio bench debian programs
	@cmake --build $(release) -j $(JOBS)
	@bench/run

image-fuzzers: fuzz-packages build/fuzz/build.ninja
	@cmake --build build/fuzz -j $(JOBS) --target timed_fuzzers

fuzz: fuzz-packages build/fuzz/build.ninja ## every fuzz target for FUZZ_SECONDS (60)
	@cmake --build build/fuzz -j $(JOBS) --target fuzzers
	@tools/run-fuzzers build/fuzz $(FUZZ_SECONDS)

fuzz-packages:
	@tools/install-packages build fuzz

install: build ## executables, manual and shell completion below DESTDIR/PREFIX
	@DESTDIR='$(DESTDIR)' cmake --install $(release) --prefix '$(PREFIX)'

clean: ## removes build/
	rm -rf build
