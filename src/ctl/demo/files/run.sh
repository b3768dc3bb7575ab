set -e
mkdir -p build
cc -std=c99 -Wall -Wextra -o build/stats_test -Isrc src/stats.c tests/stats_test.c
build/stats_test
