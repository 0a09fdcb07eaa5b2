package server

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// limited starts the real mosquitto with the limits that we write for it, those of
// memory a hundredth, and lets everybody in. It returns its process and the
// address of hosts.
func limited(t *testing.T) (process *os.Process, address string) {
	t.Helper()
	access := regexp.MustCompile(`(?m)^(certfile|keyfile|cafile|require_|use_|acl_file|password_file|allow_).*`)
	conf := regexp.MustCompile(`\d{8,}`).ReplaceAllStringFunc(mosquittoConf, func(n string) string { return n[:len(n)-2] })
	conf = regexp.MustCompile(`listener \d+`).ReplaceAllStringFunc(access.ReplaceAllString(conf, ""), func(line string) string {
		host, free, _ := net.SplitHostPort(freeAddress(t))
		if line == "listener 8883" {
			address = net.JoinHostPort(host, free)
		}
		return "listener " + free + " " + host + "\nallow_anonymous true"
	})
	file := filepath.Join(t.TempDir(), "conf")
	if err := os.WriteFile(file, []byte(conf+"\nuser root\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("mosquitto", "-c", file)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if c, err := net.Dial("tcp", address); err == nil {
			c.Close()
			return cmd.Process, address
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// TestMosquittoIsNotFull: a host that says more than what waits for the servers
// may be, large or small, keeps neither them nor other hosts out.
func TestMosquittoIsNotFull(t *testing.T) {
	t.Parallel()
	process, address := limited(t)
	host, port, _ := net.SplitHostPort(address)
	client := func(in io.Reader, program string, args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "timeout", append([]string{"30", program, "-V", "5", "-h", host, "-p", port, "-q", "1"}, args...)...)
		cmd.Stdin = in
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	server := []string{"-i", "control", "-c", "-t", "rg/v1/hosts/+/status"}
	if out, err := client(nil, "mosquitto_sub", append(server, "-E")...); err != nil {
		t.Fatal(out, err)
	}
	for _, size := range []int{1000, 1} {
		for _, qos := range []string{"0", "1"} {
			flood := strings.NewReader(strings.Repeat(strings.Repeat("x", size)+"\n", 30_000))
			_, _ = client(flood, "mosquitto_pub", "-i", "loud", "-q", qos, "-t", "rg/v1/hosts/loud/status", "-l") // it may be cut off
		}
	}
	if out, err := client(nil, "mosquitto_pub", "-i", "quiet", "-t", "rg/v1/hosts/quiet/status", "-m", "here"); err != nil {
		t.Error("another host does not get in:", out, err)
	}
	if out, err := client(nil, "mosquitto_sub", append(server, "-C", "1")...); err != nil || out == "" {
		t.Error("the servers do not get in:", out, err)
	}
	if kept := resident(t, process); kept > 64<<20 {
		t.Errorf("it keeps %d MiB", kept>>20)
	}
}

// resident is how many bytes of memory a process has.
func resident(t *testing.T, p *os.Process) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.Pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(text))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// TestMosquittoHoldsNothingHalf: a host may not begin messages at QoS 2 that it
// never completes, which the broker would keep.
func TestMosquittoHoldsNothingHalf(t *testing.T) {
	t.Parallel()
	process, address := limited(t)
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write([]byte("\x10\x11\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x04loud")); err != nil {
		t.Fatal(err)
	}
	const topic = "rg/v1/hosts/loud/status"
	go func() {
		for id := range uint16(100) {
			body := binary.BigEndian.AppendUint16([]byte("\x00"+string(rune(len(topic)))+topic), id+1)
			body = append(append(body, 0), bytes.Repeat([]byte("x"), 900_000)...)
			head := binary.AppendUvarint([]byte{0x34}, uint64(len(body))) // MQTT's lengths are the same
			if _, err := c.Write(append(head, body...)); err != nil {
				return
			}
		}
	}()
	got := make([]byte, 2)
	answers := 0
	for err == nil && answers < 100 {
		if _, err = io.ReadFull(c, got); err == nil && got[0] == 0x50 { // PUBREC
			answers++
		}
		if err == nil {
			_, err = io.CopyN(io.Discard, c, int64(got[1]))
		}
	}
	if kept := resident(t, process); answers > 0 || kept > 64<<20 {
		t.Errorf("%d messages are begun, and %d MiB kept", answers, kept>>20)
	}
}
