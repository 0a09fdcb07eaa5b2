package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	_ "embed"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/remotegpu/remotegpu/control/keys"
	"github.com/remotegpu/remotegpu/control/pg"
)

// mosquittoConf denies whatever it does not allow.
//
//go:embed mosquitto.conf
var mosquittoConf string

// mosquittoLimits bound what one host costs the broker, which does not do that.
//
//go:embed mosquitto.nft
var mosquittoLimits string

// What hosts, the control plane and integrations may do there, each at a port
// of its own.
const (
	aclHosts = `# A host, whose id is its certificate's name and its client id.
pattern write rg/v1/hosts/%c/hello
pattern write rg/v1/hosts/%c/status
pattern write rg/v1/hosts/%c/presence
pattern write rg/v1/hosts/%c/telemetry
pattern read rg/v1/hosts/%c/desired
pattern read rg/v1/hosts/%c/dial
pattern read rg/v1/hosts/%c/ack
`
	aclControl = `# The servers.
user ` + hopName + `
topic readwrite rg/v1/#
`
	aclIntegrations = `# Integrations: users of the file passwords (mosquitto_passwd passwords NAME), each
# with what it may read, a workspace by its id (remotegpu workspace ls -o json):
#
# user grafana
# topic read rg/v1/workspaces/ws_…/#
`
)

// WriteMosquitto writes into dir a configuration of mosquitto 2 as a broker of
// the fleet whose database is at url, reached by the name or address host.
func WriteMosquitto(ctx context.Context, url, host, dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	pool, err := pg.Open(ctx, url)
	if err != nil {
		return err
	}
	defer pool.Close()
	fleet, err := authority(ctx, pool, keys.CA)
	if err != nil {
		return err
	}
	hosts, err := authority(ctx, pool, keys.MQTT)
	if err != nil {
		return err
	}
	key, err := newKey()
	if err != nil {
		return err
	}
	cert, err := issue(fleet, key, []string{host}, x509.ExtKeyUsageServerAuth)
	if err != nil {
		return fmt.Errorf("issue certificate of the broker: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(cert.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		return err
	}
	for name, text := range map[string]string{
		"remotegpu.conf":   strings.ReplaceAll(mosquittoConf, "@DIR@", dir),
		"remotegpu.nft":    mosquittoLimits,
		"hosts-ca.pem":     string(chainPEM(hosts)),
		"control-ca.pem":   string(chainPEM(fleet)),
		"broker.pem":       string(chainPEM(cert)),
		"broker.key":       string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})),
		"acl-hosts":        aclHosts,
		"acl-control":      aclControl,
		"acl-integrations": aclIntegrations,
		"passwords":        "",
	} {
		if err := writeNew(filepath.Join(dir, name), text); err != nil {
			return err
		}
	}
	return nil
}

// writeNew leaves a file that is there: it may have been changed.
func writeNew(name, text string) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if os.IsExist(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	_, err = f.WriteString(text)
	if closed := f.Close(); err == nil {
		err = closed
	}
	return err
}
