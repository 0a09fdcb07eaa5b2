package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// settings is what an end is told, as its one argument.
type settings struct {
	Dir    string        // with the certificate
	Role   string        // a key of roles
	To     string        // the next end: the address that it dials
	Target string        // where an agent that dials its gateway leads its streams
	Delay  time.Duration // of role delay, one way

	Hosts int  // of role bare clients
	Plain bool // of roles bare broker and bare clients: no TLS

	Profile string // folder for a CPU profile; empty: none
}

// roles are the programs that an end can be. Each prints where it can be
// reached by calling ready and then serves until its process ends.
var roles = map[string]func(s settings, ready func(addrs ...string)) error{
	"delay":                delayEnd,
	"relay gateway":        relayGateway,
	"relay agent":          relayAgent,
	"tunnel gateway":       tunnelGateway,
	"tunnel agent":         tunnelAgent,
	"remotedialer gateway": remotedialerGateway,
	"remotedialer agent":   remotedialerAgent,
	"echo":                 echoEnd,
	"burn":                 burnEnd,
	"bare broker":          bareBroker,
	"bare clients":         bareClients,
}

// end is the main func of an end: it lives as long as its standard input.
func end(args []string) error {
	var s settings
	if len(args) != 1 {
		return errors.New("it is started by bench itself")
	}
	if err := json.Unmarshal([]byte(args[0]), &s); err != nil {
		return err
	}
	if s.Profile != "" {
		stop, err := s.startProfile()
		if err != nil {
			return err
		}
		defer stop()
	}
	failed := make(chan error, 2)
	go func() {
		failed <- roles[s.Role](s, func(addrs ...string) { fmt.Println(strings.Join(addrs, " ")) })
	}()
	go func() {
		_, err := io.Copy(io.Discard, os.Stdin)
		failed <- err
	}()
	return <-failed
}

func (s settings) startProfile() (stop func(), err error) {
	name := fmt.Sprintf("%s.%d.pprof", strings.ReplaceAll(s.Role, " ", "-"), os.Getpid())
	f, err := os.Create(filepath.Join(s.Profile, name))
	if err != nil {
		return nil, err
	}
	return func() { pprof.StopCPUProfile(); f.Close() }, pprof.StartCPUProfile(f)
}

// process is a started end.
type process struct {
	cmd   *exec.Cmd
	stdin io.Closer
	addrs []string
}

func (b *bench) start(s settings) (*process, error) {
	s.Dir, s.Profile = b.dir, b.profile
	arg, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "end", string(arg))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, stdin: stdin}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		p.stop()
		return nil, fmt.Errorf("end %q did not start: %w", s.Role, err)
	}
	p.addrs = strings.Fields(line)
	return p, nil
}

func (p *process) stop() {
	p.stdin.Close() // it ends
	defer time.AfterFunc(5*time.Second, func() { _ = p.cmd.Process.Kill() }).Stop()
	_ = p.cmd.Wait() // its error is that of its end
}

// cpu is the seconds of CPU time that the process has used.
func (p *process) cpu() (float64, error) { return cpuOf(p.cmd.Process.Pid) }

func cpuOf(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat: %q", pid, text)
	}
	user, err := strconv.ParseFloat(f[11], 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseFloat(f[12], 64)
	return (user + system) / 100, err // USER_HZ is 100 on every architecture of Go's
}

// writeCertificate makes the certificate that all ends share.
func writeCertificate(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	text = append(text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...)
	return os.WriteFile(filepath.Join(dir, "cert.pem"), text, 0o600)
}

// tlsConfig serves both sides of a connection; nil: it is plain.
func (s settings) tlsConfig() (*tls.Config, error) {
	if s.Plain {
		return nil, nil
	}
	file := filepath.Join(s.Dir, "cert.pem")
	cert, err := tls.LoadX509KeyPair(file, file)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert.Leaf)
	return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots, MinVersion: tls.VersionTLS13}, nil
}

// serve accepts connections until the listener fails.
func serve(l net.Listener, handle func(net.Conn)) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go handle(c)
	}
}

func listen() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }
