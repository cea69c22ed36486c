PREFIX = /usr
DESTDIR =
ARGS =
PYTHON = python3
SOAK = tests/tracking/test_histories.py tests/state/test_recovery.py tests/policy/test_scans.py tests/kernel/test_pages.py tests/kernel/test_resets.py tests/kernel/test_btf.py tests/kernel/test_probe_pages.py tests/test_fuzz.py tests/test_proof.py tests/system/test_faults.py
VENV = .venv
LIBDIR = $(PREFIX)/lib/tcpwatchd
LIBEXECDIR = $(PREFIX)/libexec/tcpwatchd
UNITDIR = $(PREFIX)/lib/systemd/system
UNITS = tcpwatchd.service tcpwatchd-trace.service tcpwatchd-metrics.service tcpwatchd-metrics.socket
MANDIR = $(PREFIX)/share/man
CATALOGDIR = $(PREFIX)/lib/systemd/catalog
COMPLETIONDIR = $(PREFIX)/share/bash-completion/completions
DOCDIR = $(PREFIX)/share/doc/tcpwatchd
# The program looks for its configuration there and nowhere else.
SYSCONFDIR = /etc
CONFIG = $(DESTDIR)$(SYSCONFDIR)/tcpwatchd/tcpwatchd.conf

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile

run:  ## watch in the foreground; ARGS="--output json" passes flags
	@$(PYTHON) -m tcpwatchd $(ARGS)

test: $(VENV)/ready  ## set up and run all tests
	@tests/run $(VENV)/bin/python $(ARGS)

check: lint  ## lint, and the tests that need neither root nor a container
	$(VENV)/bin/python -m pytest -n 2 -m "not (root or trace or container or machine or pythons)"

soak: $(VENV)/ready  ## run the long forms of the property, fuzzing and fault tests
	@HYPOTHESIS_PROFILE=long FUZZ_RUNS=1000000 CHURN_SECONDS=60 KILLS=20 tests/run $(VENV)/bin/python $(SOAK)

lint: $(VENV)/ready  ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs:  ## make what is made of the tables of settings and metrics: the configuration file, parts of the man pages, completion
	PYTHONPATH=. $(PYTHON) packaging/settings.py

bench: $(VENV)/ready  ## measure beside peers, as root; ARGS names some of the benchmarks
	tests/setup $(PYTHON) $(VENV) tcpspy bpftrace
	$(VENV)/bin/python -m tests.bench $(ARGS)

$(VENV)/ready: tests/setup tests/requirements.txt
	tests/setup $(PYTHON) $(VENV)
	touch $@

# Compiled here: the service may not write into it. A configuration that is there stays as it is.
install:  ## install to $(DESTDIR)$(PREFIX)
	install -d $(DESTDIR)$(PREFIX)/bin
	for file in $$(find tcpwatchd -name '*.py'); do \
	    install -D -m 644 $$file $(DESTDIR)$(LIBDIR)/$$file || exit 1; \
	done
	/usr/bin/python3 -m compileall -q -s "$(DESTDIR)" $(DESTDIR)$(LIBDIR)
	sed 's|@LIBDIR@|$(LIBDIR)|' packaging/tcpwatchd.in > $(DESTDIR)$(PREFIX)/bin/tcpwatchd
	chmod 755 $(DESTDIR)$(PREFIX)/bin/tcpwatchd
	install -d $(DESTDIR)$(LIBEXECDIR)
	sed 's|/usr/lib/tcpwatchd|$(LIBDIR)|' packaging/tcpwatchd-metrics > $(DESTDIR)$(LIBEXECDIR)/tcpwatchd-metrics
	chmod 755 $(DESTDIR)$(LIBEXECDIR)/tcpwatchd-metrics
	install -d $(DESTDIR)$(UNITDIR)
	for unit in $(UNITS); do \
	    sed -e 's|/usr/bin/tcpwatchd|$(PREFIX)/bin/tcpwatchd|' -e 's|/usr/libexec/tcpwatchd|$(LIBEXECDIR)|' \
	        systemd/$$unit > $(DESTDIR)$(UNITDIR)/$$unit; \
	    chmod 644 $(DESTDIR)$(UNITDIR)/$$unit; \
	done
	install -D -m 644 -t $(DESTDIR)$(CATALOGDIR) systemd/tcpwatchd.catalog
	for page in tcpwatchd.8 tcpwatchd.conf.5; do \
	    folder=$(DESTDIR)$(MANDIR)/man$${page##*.}; \
	    install -d $$folder || exit 1; \
	    sed 's|/usr/share/doc/tcpwatchd|$(DOCDIR)|' packaging/$$page > $$folder/$$page; \
	    chmod 644 $$folder/$$page; \
	done
	install -D -m 644 -t $(DESTDIR)$(COMPLETIONDIR) packaging/completions/tcpwatchd
	for file in $$(cd packaging/examples && find . -type f); do \
	    install -D -m 644 packaging/examples/$$file $(DESTDIR)$(DOCDIR)/examples/$$file || exit 1; \
	done
	install -d $(CONFIG).d
	test -e $(CONFIG) || install -D -m 644 packaging/tcpwatchd.conf $(CONFIG)

uninstall:  ## remove what install put there, but a changed configuration; stop and disable the service first
	rm -rf $(DESTDIR)$(LIBDIR)/tcpwatchd $(DESTDIR)$(LIBEXECDIR) $(DESTDIR)$(DOCDIR)/examples
	rm -f $(DESTDIR)$(PREFIX)/bin/tcpwatchd $(addprefix $(DESTDIR)$(UNITDIR)/,$(UNITS))
	rm -f $(DESTDIR)$(CATALOGDIR)/tcpwatchd.catalog $(DESTDIR)$(COMPLETIONDIR)/tcpwatchd
	rm -f $(DESTDIR)$(MANDIR)/man8/tcpwatchd.8 $(DESTDIR)$(MANDIR)/man5/tcpwatchd.conf.5
	if cmp -s packaging/tcpwatchd.conf $(CONFIG); then rm $(CONFIG); \
	elif test -e $(CONFIG); then echo "$(CONFIG) was changed, and stays"; fi
	for folder in $(DESTDIR)$(LIBDIR) $(DESTDIR)$(DOCDIR) $(CONFIG).d $(dir $(CONFIG)); do \
	    test ! -d $$folder || rmdir --ignore-fail-on-non-empty $$folder; \
	done

deb:  ## build the Debian package into dist/
	@packaging/build-deb

rpm:  ## build the RPM packages into dist/; ARGS passes flags to rpmbuild
	@packaging/build-rpm $(ARGS)

.PHONY: help run test check soak lint docs bench install uninstall deb rpm
