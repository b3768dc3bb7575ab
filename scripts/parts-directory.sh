# Sourced by the scripts that fetch programs from elsewhere: where those
# are kept. A bare CI user may have no HOME at all, or an empty one.
parts_directory() {
  if [[ ${AGENTD_PARTS_DIR:-} ]]; then
    echo "$AGENTD_PARTS_DIR"
  elif [[ ${XDG_CACHE_HOME:-} ]]; then
    echo "$XDG_CACHE_HOME/agentd-parts"
  elif [[ ${HOME:-} ]]; then
    echo "$HOME/.cache/agentd-parts"
  else
    echo "${TMPDIR:-/tmp}/agentd-parts-$UID"
  fi
}
