#!/bin/sh
# What the library exports and what it calls:  sh tests/symbols.sh library.o
# Every global symbol starts with xg_; nothing that prints, aborts or exits is referenced; no datum is
# writable (no mutable globals).
object=$1
bad=$(nm -g --defined-only "$object" | awk '$3 !~ /^xg_/ { print $3 }')
[ -z "$bad" ] || { echo "exported without the xg_ prefix: $bad"; exit 1; }
bad=$(nm -u "$object" | awk '{ print $2 }' |
      grep -E '^(abort|exit|_exit|printf|puts|putchar|perror|__assert_fail|rand|srand|system)$')
[ -z "$bad" ] || { echo "the library must not call: $bad"; exit 1; }
bad=$(nm "$object" | awk '$2 ~ /^[bBdDcC]$/ { print $3 }' | grep -v '\.rel\.ro')
for name in $bad; do
    # Constant tables of pointers stand in .data.rel.ro, which the loader makes read-only.
    section=$(objdump -t "$object" 2>/dev/null | awk -v n="$name" '$NF == n { for (i = 1; i < NF; i++) if ($i ~ /^\./) print $i }')
    case $section in .data.rel.ro* | .rodata*) ;; *) echo "mutable global: $name in $section"; exit 1 ;; esac
done
exit 0
