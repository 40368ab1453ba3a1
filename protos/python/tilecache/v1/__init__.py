"""Generated from protos/tilecache."""
