#!/usr/bin/env bash
printf '{"greeting": "hello", "from": "%s"}\n' bash | jq -r '"\(.greeting) from \(.from)"'
