#!/bin/sh
# Stands for a credential helper: a test links to this file and writes what the helper does into a file beside the link.
# A file that is run must not be open for writing in any process, which no test could promise of one that it wrote.
. "$0.sh"
