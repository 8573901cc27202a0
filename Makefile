# xguide.h. What people type:
#
#   make demo       train plain and guided on scenes with a decoy, show the table and a picture
#   make test       the tests; ends with "N passed, N failed, N skipped"; FULL=1 adds what takes long
#   make            the command-line tool, build/xguide
#   make bench      kernels and workloads against the peak of this machine
#   make bench-peers   the same workloads in PyTorch and JAX, which it fetches first
#   make install    the header and the tool under PREFIX (/usr/local)
#   make clean
#
# Every variable can be given on the command line: make CC=clang CFLAGS='-O3'; make bench ARGS='--quick mlp'.

CC      ?= cc
CXX     ?= c++
CFLAGS  ?= -O2
PREFIX  ?= /usr/local
BUILD   ?= build
JOBS    ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
WARN     = -Wall -Wextra -Wconversion -Wsign-conversion -Wshadow -Wpedantic
# The kit uses POSIX; the header asks for nothing beyond C99.
C99      = -std=c99 -D_POSIX_C_SOURCE=200809L -D_XOPEN_SOURCE=700 $(WARN) -I. -Iexamples/kit
LIBS     = -lm -lpthread

KIT      = $(patsubst examples/kit/%.c,$(BUILD)/%.o,$(wildcard examples/kit/*.c))
TOOL     = $(patsubst tools/%.c,$(BUILD)/%.o,tools/xguide.c $(wildcard tools/cli_*.c))
BENCH    = $(patsubst tools/%.c,$(BUILD)/%.o,tools/bench.c $(wildcard tools/bench_*.c))
EXAMPLES = $(patsubst examples/%.c,$(BUILD)/example_%,$(wildcard examples/*.c))
HEADERS  = xguide.h examples/kit/kit.h

.PHONY: all demo test bench bench-peers install clean needs
.DELETE_ON_ERROR:

all: $(BUILD)/xguide $(EXAMPLES)

demo: needs
	@echo building
	@$(MAKE) --no-print-directory -s -j$(JOBS) $(BUILD)/xguide
	@$(BUILD)/xguide demo --out $(BUILD)

test: needs
	@sh tests/run.sh

bench: $(BUILD)/bench
	@$(BUILD)/bench --csv $(BUILD)/bench.csv $(ARGS)

# With PYTHON=... that interpreter's torch and jax are measured; without, the newest are fetched.
ifdef PYTHON
bench-peers: $(BUILD)/bench $(BUILD)/hello_static
	@$(PYTHON) tools/peers.py --build $(BUILD) $(ARGS)
else
bench-peers: $(BUILD)/bench $(BUILD)/hello_static $(BUILD)/peers/ready
	@$(BUILD)/peers/bin/python tools/peers.py --build $(BUILD) $(ARGS)
endif

# With KANN=FOLDER kann is built from its sources there and measured, too; KANNFLAGS='-DHAVE_CBLAS -lopenblas'
# has it use that library.
ifdef KANN
bench-peers: $(BUILD)/peers_kann
endif

$(BUILD)/peers_kann: tools/peers_kann.c $(patsubst %,$(BUILD)/bench_%.o,machine run works) $(KIT) $(BUILD)/library.o
	$(CC) -O3 -march=native -DHAVE_PTHREAD -I. -Iexamples/kit -I$(KANN) $(KANN)/kann.c $(KANN)/kautodiff.c $^ -o $@ \
	    $(LIBS) $(KANNFLAGS)

$(BUILD)/peers/ready: | $(BUILD)
	@echo "fetching PyTorch and JAX into $(BUILD)/peers, once; some gigabytes"
	@python3 -m venv $(BUILD)/peers && $(BUILD)/peers/bin/pip install --quiet torch jax numpy || { \
	    echo "They could not be installed. Is there a network, and python3-venv? With another"; \
	    echo "interpreter that has both: make bench-peers PYTHON=/path/to/python"; exit 1; }
	@touch $@

# The one thing that is not in the tree: stb's picture reader, from the system's packages.
needs: | $(BUILD)
	@sh tools/need.sh libstb-dev /usr/include/stb/stb_image.h

$(BUILD):
	@mkdir -p $@

# ---- the library, compiled once for everything that links with it --------------------------------

$(BUILD)/library.o: tests/compile/implementation.c xguide.h | $(BUILD)
	$(CC) $(CFLAGS) $(C99) -c $< -o $@

$(BUILD)/library_double.o: tests/compile/implementation.c xguide.h | $(BUILD)
	$(CC) $(CFLAGS) $(C99) -DXG_DOUBLE -c $< -o $@

# ---- kit, tool, examples -------------------------------------------------------------------------

$(BUILD)/kit_%.o: examples/kit/kit_%.c $(HEADERS) | needs
	$(CC) $(CFLAGS) $(C99) -c $< -o $@

$(BUILD)/%.o: tools/%.c $(HEADERS) $(wildcard tools/*.h) | $(BUILD)
	$(CC) $(CFLAGS) $(C99) -c $< -o $@

$(BUILD)/xguide: $(TOOL) $(KIT) $(BUILD)/library.o
	$(CC) $(CFLAGS) $^ -o $@ $(LIBS)

$(BUILD)/bench: $(BENCH) $(KIT) $(BUILD)/library.o
	$(CC) $(CFLAGS) $^ -o $@ $(LIBS)

# hello.c is its own implementation: one file, no library to link.
$(BUILD)/example_hello: examples/hello.c xguide.h | $(BUILD)
	$(CC) $(CFLAGS) -std=c99 $(WARN) -I. $< -o $@ -lm

$(BUILD)/example_%: examples/%.c $(KIT) $(BUILD)/library.o $(HEADERS)
	$(CC) $(CFLAGS) $(C99) $< $(KIT) $(BUILD)/library.o -o $@ $(LIBS)

# How small a whole program is.
$(BUILD)/hello_static: examples/hello.c xguide.h | $(BUILD)
	$(CC) $(CFLAGS) -std=c99 $(WARN) -I. -static -s $< -o $@ -lm

# ---- tests, in float and in double ---------------------------------------------------------------

$(BUILD)/test_%: tests/test_%.c $(wildcard tests/*.h) $(KIT) $(BUILD)/library.o
	$(CC) $(CFLAGS) $(C99) -Itests $< $(KIT) $(BUILD)/library.o -o $@ $(LIBS)

$(BUILD)/double_%: tests/test_%.c $(wildcard tests/*.h) $(BUILD)/library_double.o
	$(CC) $(CFLAGS) $(C99) -Itests -DXG_DOUBLE $< $(BUILD)/library_double.o -o $@ $(LIBS)

# The header's reviewer: a plain program.
$(BUILD)/check: tools/check.c | $(BUILD)
	$(CC) $(CFLAGS) $(C99) $< -o $@

# ---- the rest ------------------------------------------------------------------------------------

install: $(BUILD)/xguide
	install -d $(DESTDIR)$(PREFIX)/include $(DESTDIR)$(PREFIX)/bin
	install -m 644 xguide.h $(DESTDIR)$(PREFIX)/include/
	install -m 755 $(BUILD)/xguide $(DESTDIR)$(PREFIX)/bin/

clean:
	rm -rf $(BUILD)
