// Package sshconfig makes OpenSSH find environments and hosts by name.
//
// It owns a block of OpenSSH's configuration, the file of known hosts beside it,
// and how both get to a person's ~/.ssh. Its invariant: what the person has
// written there stays, and once installed it is there once.
package sshconfig

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Suffixes of names.
const (
	Environment = ".rg"
	Host        = ".rghost"
)

// KnownHosts is the file of known hosts of a gateway and its fleet's authority.
func KnownHosts(host, port, authority, key string) string {
	return fmt.Sprintf("@cert-authority *.rg,*.rghost,[%[1]s]:%[2]s %[3]s\n[%[1]s]:%[2]s %[4]s\n", host, port, authority, key)
}

// Block is for ~/.ssh/config. Program is how this one is called, quoted as
// OpenSSH wants it; known is a file of KnownHosts.
func Block(server, workspace, program, known string) string {
	own := ""
	if workspace == "" {
		workspace = "none yet"
	} else { // its name goes where ssh looks for the host's certificate: other workspaces have an ENV too
		own = fmt.Sprintf("Host *.rg !*.*.rg !env_*\n    HostName %%h.%s.rg\n", workspace)
	}
	return fmt.Sprintf(`# RemoteGPU, %[1]s
#
#   ssh ENV.rg              an environment of workspace %[2]s
#   ssh ENV.WORKSPACE.rg    of any workspace
#   ssh HOST.rghost         a host itself, for platform admins
#
# Encrypted end to end, up to the host. Where a workspace records sessions, the
# gateway sees them; a terminal says at its start which of the two it is.
%[5]sHost *.rg *.rghost
    ProxyCommand %[3]s ssh-proxy %%h
    UserKnownHostsFile "%[4]s"
    StrictHostKeyChecking yes
    ServerAliveInterval 15
    ServerAliveCountMax 4
`, server, workspace, program, known, own)
}

// fileName lies beside OpenSSH's config, which includes it.
const fileName = "remotegpu.conf"

// Install writes block and lets OpenSSH's configuration include it first: what
// follows a Host line belongs to that host.
func Install(block string) (file string, err error) {
	home, err := os.UserHomeDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(home, ".ssh")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	file = filepath.Join(dir, fileName)
	if err := os.WriteFile(file, []byte(block), 0o600); err != nil {
		return "", err
	}
	config := filepath.Join(dir, "config")
	old, err := os.ReadFile(config)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	include := "Include " + fileName
	if slices.Contains(strings.Split(strings.ReplaceAll(string(old), "\r\n", "\n"), "\n"), include) {
		return file, nil
	}
	return file, os.WriteFile(config, bytes.Join([][]byte{[]byte(include), old}, []byte("\n")), 0o600)
}
