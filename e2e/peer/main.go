// Command peer is somebody on the other end of the network: one who behaves, and
// measures how long everything takes, or one who does not.
//
// It owns what hostile peers do and how a good one measures; what is allowed to
// come of it stands in e2e/hostile_test.go. Its invariant: it has the
// credentials that it was given and knows nothing else of the server.
package main

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

// config says where the server is and whose credentials the peer has.
type config struct {
	Address   string // host of the server
	HTTPS     string // port
	MQTT      string
	SSH       string
	Token     string // API token of a user
	Join      string // join token for hosts
	Key       string // file with an SSH key of that user
	Env       string // an environment of theirs
	Victim    string // host id of somebody else
	Target    string // environment id on it
	Certified bool   // hosts show the broker a certificate, for it knows no tokens
}

// peer is one run of the program.
type peer struct {
	config
	ctx    context.Context
	client *http.Client
	done   atomic.Int64 // tries, for people to see that there were some
}

// attacks are what a hostile peer does, again and again, in each of its threads.
var attacks = map[string]struct {
	threads int
	once    func(p *peer, thread int) error
}{
	"a flood of statuses":            {2, (*peer).flood},
	"forged statuses":                {2, (*peer).forge},
	"security events":                {2, (*peer).cryWolf},
	"wills by the thousand":          {4, (*peer).wills},
	"malformed MQTT":                 {4, (*peer).malformed},
	"enrolments with 1 MB of labels": {4, (*peer).labels},
	"certificates":                   {4, (*peer).certificates},
	"slow-loris at HTTPS":            {1, func(p *peer, _ int) error { return p.loris(p.HTTPS) }},
	"slow-loris at MQTT":             {1, func(p *peer, _ int) error { return p.loris(p.MQTT) }},
	"guessed passwords":              {8, (*peer).passwords},
	"guessed tokens":                 {8, (*peer).tokens},
	"SSH banners":                    {8, (*peer).banners},
	"compressed bombs":               {4, (*peer).bombs},
	"oversized headers":              {4, (*peer).headers},
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	as := flag.String("as", "good", "good, host (joins and says with what), or the name of an attack")
	file := flag.String("config", "", "JSON file that says where and with what")
	lasts := flag.Duration("for", 5*time.Second, "how long")
	flag.Parse()
	var p peer
	b, err := os.ReadFile(*file)
	if err == nil {
		err = json.Unmarshal(b, &p.config)
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), *lasts+30*time.Second)
	defer cancel()
	p.ctx = ctx
	p.client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxIdleConnsPerHost: 16, // the server's certificate is not what is tested
	}}
	switch *as {
	case "good":
		return p.behave(*lasts)
	case "host":
		return p.join()
	}
	return p.attack(*as, *lasts)
}

func (p *peer) attack(name string, lasts time.Duration) error {
	a, ok := attacks[name]
	if !ok {
		return fmt.Errorf("there is no attack %q", name)
	}
	end := time.Now().Add(lasts)
	var all sync.WaitGroup
	var last atomic.Value
	for thread := range a.threads {
		all.Go(func() {
			for time.Now().Before(end) {
				if err := a.once(p, thread); err != nil {
					last.Store(err.Error())
					time.Sleep(5 * time.Millisecond)
				}
				p.done.Add(1)
			}
		})
	}
	all.Wait()
	said, _ := last.Load().(string)
	fmt.Printf("%d tries; the last refusal: %.200s\n", p.done.Load(), said)
	return nil
}

func (p *peer) url(path string) string {
	return "https://" + net.JoinHostPort(p.Address, p.HTTPS) + path
}

// dial opens a TLS connection to a port, where it shows what is asked for.
func (p *peer) dial(port string, shown ...tls.Certificate) (net.Conn, error) {
	d := &net.Dialer{Timeout: 10 * time.Second}
	return tls.DialWithDialer(d, "tcp", net.JoinHostPort(p.Address, port), &tls.Config{InsecureSkipVerify: true, Certificates: shown})
}

// identity is a host that has joined.
type identity struct {
	host  string
	key   ed25519.PrivateKey
	shown []tls.Certificate // to a broker that asks for one
}

// enroll joins as a host with valid credentials.
func (p *peer) enroll() (identity, error) {
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return identity{}, err
	}
	var out protocol.Enrolled
	err = p.post("/api/v1/agent/enroll", protocol.Enroll{
		Token: p.Join, PublicKey: pub, Proof: ed25519.Sign(key, protocol.EnrollProof(p.Join, pub)), Agent: "peer",
		Inventory: protocol.Inventory{Hostname: "peer", OS: "linux", Arch: "amd64", CPUs: 1, Memory: 1 << 30, Disk: 1 << 30},
	}, &out)
	id := identity{host: out.Host, key: key}
	if err != nil || !p.Certified {
		return id, err
	}
	chain, err := p.certificate(id)
	if err != nil {
		return id, err
	}
	block, _ := pem.Decode(chain)
	if block == nil {
		return id, errors.New("the control plane gives no certificate")
	}
	id.shown = []tls.Certificate{{Certificate: [][]byte{block.Bytes}, PrivateKey: key}}
	return id, nil
}

// certificate asks for one of the host's key, as PEM.
func (p *peer) certificate(id identity) (chain []byte, err error) {
	token, err := id.proof(protocol.AudienceAPI)
	if err == nil {
		err = p.do(http.MethodPost, protocol.CertificatePath, token, nil, &chain)
	}
	return chain, err
}

// join joins as a host and writes what it shows to an external broker, host.pem
// and host.key, into the folder where this runs; it prints its id.
func (p *peer) join() error {
	id, err := p.enroll()
	if err != nil {
		return err
	}
	chain, err := p.certificate(id)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(id.key)
	if err == nil {
		err = os.WriteFile("host.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
	}
	if err == nil {
		err = os.WriteFile("host.pem", chain, 0o600)
	}
	fmt.Println(id.host)
	return err
}
