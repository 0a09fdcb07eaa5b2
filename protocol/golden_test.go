package protocol

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden vectors anew; only for documents that no release has sent yet")

// The host and key of all tests. The key is as public as this file.
const testHost = "host_0123456789abcdefghjk"

var testKey = ed25519.NewKeyFromSeed([]byte("remotegpu protocol test vectors!"))

// vector is a document with its golden encoding in testdata/v1. The smallest
// and the fullest of each type stand here.
type vector struct {
	name string // file name without extension
	rule string // in protocol.cddl
	doc  any    // pointer to the document
}

func vectors() []vector {
	return []vector{
		{"desired", "desired", fullDesired()},
		{"desired-empty", "desired", &Desired{Version: 1, Host: testHost, Generation: 1}},
		{"reference", "reference", Refer(testHost, 42, []byte("a signed document"))},
		{"hello", "hello", fullHello()},
		{"hello-empty", "hello", &Hello{Version: 1, Inventory: Inventory{Deployment: "traditional"}}},
		{"presence", "presence", &Presence{Version: 1, Epoch: 7, Online: true}},
		{"presence-will", "presence", &Presence{Version: 1, Epoch: 7}},
		{"status", "status", fullStatus()},
		{"status-empty", "status", &Status{Version: 1}},
		{"status-fault", "status", &Status{Version: 1, Fault: "containerd does not answer"}},
		{"telemetry", "telemetry-batch", fullTelemetry()},
		{"ack", "ack", &Ack{Version: 1, Status: 12, Event: 34, Telemetry: 56}},
		{"ack-spread", "ack", &Ack{Version: 1, Status: 12, Spread: 50}},
		{"ack-empty", "ack", &Ack{Version: 1}},
		{"dial", "dial", &Dial{Version: 1, Token: "1yzb6v", Expires: 1793491230, Spares: 2}},
		{"stream-header", "stream-header", &StreamHeader{Version: 1, ID: "str_0123456789abcdefghjk", Kind: StreamSession, Workload: "env_0123456789abcdefghjk", User: "usr_0123456789abcdefghjk", Trace: "4bf92f3577b34da6"}},
		{"stream-header-dial", "stream-header", &StreamHeader{Version: 1, ID: "str_0123456789abcdefghjk", Kind: StreamDial, Workload: "env_0123456789abcdefghjk", User: "usr_0123456789abcdefghjk", Target: &Target{NetworkTCP, "127.0.0.1:8888"}}},
		{"stream-header-rdp", "stream-header", &StreamHeader{Version: 1, ID: "str_0123456789abcdefghjk", Kind: StreamRDP, Workload: "env_0123456789abcdefghjk", User: "usr_0123456789abcdefghjk", Target: &Target{NetworkTCP, "127.0.0.1:3389"},
			RDP: &RDPRequest{Negotiation: []byte{3, 0, 0, 19, 14, 224, 0, 0, 0, 0, 0, 1, 0, 8, 0, 3, 0, 0, 0}, Server: RDPServerXrdp, Clipboard: ClipboardToHost, Layout: 0x407}}},
		{"stream-header-logs", "stream-header", &StreamHeader{Version: 1, ID: "str_0123456789abcdefghjk", Kind: StreamLogs, Workload: "env_0123456789abcdefghjk", User: "usr_0123456789abcdefghjk", Logs: &LogsRequest{Tail: 100, Follow: true}}},
		{"stream-reply", "stream-reply", &StreamReply{Version: 1}},
		{"stream-reply-rdp", "stream-reply", &StreamReply{Version: 1, RDP: &RDPReply{Confirm: []byte{3, 0, 0, 19, 14, 208, 0, 0, 18, 52, 0, 2, 0, 8, 0, 1, 0, 0, 0}, Certificates: [][]byte{{0x30, 0}}}}},
		{"stream-reply-listen", "stream-reply", &StreamReply{Version: 1, Address: "127.0.0.1:41234"}},
		{"stream-reply-ssh", "stream-reply", &StreamReply{Version: 1, Key: []byte("an SSH public key")}},
		{"accepted", "accepted", &Accepted{Version: 1, ID: "7Q4M2ZKXV3WJ5N6TB2PLRCDEFA", Remote: "127.0.0.1:51022"}},
		{"stream-reply-refused", "stream-reply", &StreamReply{Version: 1, Code: ReplyNotRunning, Message: "Environment notebook is stopped: start it first."}},
		{"attach", "attach", fullAttach()},
		{"attach-create", "attach", &Attach{Version: 1, Session: "ses_0123456789abcdefghjk", Client: "cli_0123456789abcdefghjk", User: "usr_0123456789abcdefghjk", Op: AttachCreate}},
		{"attach-files", "attach", &Attach{Version: 1, Session: "ses_0123456789abcdefghjk", Client: "cli_0123456789abcdefghjk", User: "usr_0123456789abcdefghjk", Op: AttachCreate, Subsystem: SubsystemSFTP}},
		{"session-query", "session-query", &SessionQuery{Version: 1, User: "usr_0123456789abcdefghjk"}},
		{"session-list", "session-list", &SessionList{Version: 1, Sessions: []LiveSession{
			{ID: "ses_0123456789abcdefghjk", User: "usr_0123456789abcdefghjk", Name: "a@example.org", Since: 1793491200, Attached: true, Others: 2, Share: ShareWatch, Program: "python train.py", Terminal: true},
			{ID: "ses_1123456789abcdefghjk", User: "usr_0123456789abcdefghjk", Since: 1793491260, Share: ShareNone},
		}}},
		{"session-list-empty", "session-list", &SessionList{Version: 1}},
		{"session-open", "session-open", &SessionOpen{Version: 1, Command: "nvidia-smi -L", Args: []string{"sh", "-c", "exit 3"}, Env: map[string]string{"LANG": "C.UTF-8", "A": ""}, Term: "xterm-256color", Size: WindowSize{80, 24, 640, 480}, User: "dev"}},
		{"session-open-files", "session-open", &SessionOpen{Version: 1, Subsystem: SubsystemSFTP}},
		{"session-open-display", "session-open", &SessionOpen{Version: 1, Command: "xeyes", X11: &X11{Display: 10, Protocol: "MIT-MAGIC-COOKIE-1", Cookie: []byte("0123456789abcdef")}}},
		{"session-open-shell", "session-open", &SessionOpen{Version: 1}},
		{"window-size", "window-size", &WindowSize{Cols: 200, Rows: 50}},
		{"session-exit", "session-exit", &SessionExit{Version: 1}},
		{"session-exit-signal", "session-exit", &SessionExit{Version: 1, Code: 137, Signal: "KILL", Message: "Killed: out of memory."}},
	}
}

func fullAttach() *Attach {
	return &Attach{
		Version: 1, Session: "ses_0123456789abcdefghjk", Client: "cli_0123456789abcdefghjk", User: "usr_0123456789abcdefghjk", Name: "a@example.org",
		Op: AttachResume, Mode: ModeOwn, Share: ShareWatch, Keep: 900, Received: 1 << 40,
	}
}

func fullDesired() *Desired {
	return &Desired{Version: 1, Host: testHost, Generation: 42, IssuedAt: 1793491200, Workloads: []Workload{
		{
			ID: "env_0123456789abcdefghjk", Revision: 3, Name: "notebook", Workspace: "ws_0123456789abcdefghjk", Want: WantRunning,
			Image: "{control}/lab/starter:1", Command: []string{"jupyter", "lab", "--ip=127.0.0.1"}, Env: map[string]string{"TZ": "Asia/Shanghai", "HF_HOME": "/data/hf"},
			User: "1000:1000", Workdir: "/home/dev", GPUs: []string{"GPU-5e1f2a3b-0000-4000-8000-000000000001"},
			Limits:  Limits{MilliCPU: 8000, Memory: 64 << 30, Pids: 4096, Shm: 16 << 30, Disk: 200 << 30},
			Mounts:  []Mount{{Target: "/home/dev", Volume: "home"}, {Target: "/data", HostPath: "/srv/data", ReadOnly: true}},
			Restart: RestartAlways, Grace: 30, PullAuth: true,
		},
		{ID: "env_1123456789abcdefghjk", Revision: 1, Name: "plain", Workspace: "ws_0123456789abcdefghjk", Want: WantStopped, Image: "docker.io/library/busybox:1", Restart: RestartNever},
	}}
}

func fullHello() *Hello {
	return &Hello{
		Version: 1, Epoch: 9, BootID: "0b7c3a52-7d2e-4c1f-9f5b-0a4f6c2d1e3b", Agent: "0.1.0", Observed: 42, Applied: 41, Digest: bytes.Repeat([]byte{0xab}, 32),
		Capabilities: []string{"session", "gpu.cdi"}, ClockOffset: -1500,
		Inventory: Inventory{
			Hostname: "node-7", OS: "linux", OSVersion: "Debian GNU/Linux 12", Kernel: "6.1.0-30-amd64", Arch: "amd64", Deployment: "traditional",
			Addresses: []string{"192.0.2.7", "2001:db8::7"}, CPUModel: "AMD EPYC 9554", CPUs: 128, Memory: 1 << 40, Disk: 7 << 40, Runtime: "containerd 1.6.20",
			Driver: "570.124.06", CUDA: "12.8", GPUs: []GPU{
				{
					Index: 0, UUID: "GPU-5e1f2a3b-0000-4000-8000-000000000001", Name: "NVIDIA H100 80GB HBM3", Brand: "NVIDIA", Architecture: "Hopper", Memory: 81559 << 20,
					CUDACores: 16896, Capability: "9.0", PowerLimit: 700, TempLimit: 87, NUMANode: 0, PCI: "0000:1b:00.0", Links: []uint32{0, 18}, Healthy: true,
				},
				{Index: 1, UUID: "GPU-5e1f2a3b-0000-4000-8000-000000000002", Name: "NVIDIA H100 80GB HBM3", MIG: true, NUMANode: -1, HealthMessage: "MIG mode is on."},
			},
		},
	}
}

func fullStatus() *Status {
	code := -1
	return &Status{
		Version: 1, Epoch: 9, Seq: 1000, Observed: 42, Applied: 41,
		Workloads: []WorkloadStatus{
			{ID: "env_0123456789abcdefghjk", Revision: 3, Phase: PhaseRunning, Pid: 4711, StartedAt: 1793491201234, Restarts: 2, Address: "10.213.0.6"},
			{ID: "env_1123456789abcdefghjk", Phase: PhasePulling, Done: 1 << 20, Total: 1 << 30},
			{ID: "env_2123456789abcdefghjk", Revision: 1, Phase: PhaseBackoff, Message: "It ended with exit code -1; tried again at the time shown.", ExitCode: &code, RetryAt: 1793491260000},
		},
		Events: []Event{
			{Seq: 5, At: 1793491201000, Severity: SeverityNormal, Reason: "Pulled", Message: "Image pulled in 12 s.", Workload: "env_0123456789abcdefghjk"},
			{Seq: 6, At: 1793491202000, Severity: SeveritySecurity, Reason: "DesiredRefused", Message: "A document that no pinned key signed was refused."},
		},
		Usage: Usage{
			CPUPercent: 12.5, MemoryUsed: 33 << 30, DiskUsed: 1 << 40, Load1: 3.25, UptimeSecs: 86400,
			GPUUsed: []GPUUsage{{UUID: "GPU-5e1f2a3b-0000-4000-8000-000000000001", Utilisation: 97, MemoryUsed: 70 << 30, Temperature: 61, PowerWatts: 655.25, Healthy: true}},
		},
	}
}

func fullTelemetry() *TelemetryBatch {
	return &TelemetryBatch{
		Version: 1, First: 1001, At: []int64{1793491200000, 1793491201000},
		Host: []Series{{MetricCPUPercent, []float32{12.5, 13}}, {MetricLoad1, []float32{3.1, 3.2}}},
		GPUs: []GPUTelemetry{{UUID: "GPU-5e1f2a3b-0000-4000-8000-000000000001", Series: []Series{{MetricGPUUtilisation, []float32{97, 98}}, {MetricGPUPower, []float32{655.25, 1e-9}}}}},
	}
}

func fullEnroll() *Enroll {
	return &Enroll{Token: "rgj_abc", PublicKey: testKey.Public().(ed25519.PublicKey), Proof: bytes.Repeat([]byte{1}, 64), Name: "node-7", Agent: "0.1.0", Inventory: fullHello().Inventory}
}

func fullEnrolled() *Enrolled {
	return &Enrolled{Host: testHost, Name: "node-7", Approved: true, Keys: [][]byte{testKey.Public().(ed25519.PublicKey)}, Registry: "gpu.example.org:443"}
}

// golden compares got with the file, or writes it.
func golden(t *testing.T, name string, got []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata/v1", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, got) {
		t.Errorf("%s is not what this version writes:\n%s", path, cmp.Diff(readable(want), readable(got)))
	}
	return want
}

// readable returns CBOR in diagnostic notation (RFC 8949, section 8) and text as it is.
func readable(data []byte) string {
	text, err := cbor.Diagnose(data)
	if err != nil {
		return string(data)
	}
	return indent(text) + "\n"
}

// indent breaks diagnostic notation into lines, for reading and for diffs.
func indent(text string) string {
	var out strings.Builder
	depth, quoted := 0, false
	line := func() { out.WriteString("\n" + strings.Repeat("  ", depth)) }
	for i, c := range text {
		if c == '"' && (i == 0 || text[i-1] != '\\') {
			quoted = !quoted
		}
		switch {
		case quoted:
			out.WriteRune(c)
		case c == '{' || c == '[':
			depth++
			out.WriteRune(c)
			line()
		case c == '}' || c == ']':
			depth--
			line()
			out.WriteRune(c)
		case c == ',':
			out.WriteRune(c)
			line()
		case c == ' ' && text[i-1] == ',':
		default:
			out.WriteRune(c)
		}
	}
	return out.String()
}

func TestGoldenVectors(t *testing.T) {
	for _, v := range vectors() {
		t.Run(v.name, func(t *testing.T) {
			data, err := Marshal(v.doc)
			if err != nil {
				t.Fatal(err)
			}
			want := golden(t, v.name+".cbor", data)
			golden(t, v.name+".diag", []byte(readable(data)))
			got := reflect.New(reflect.TypeOf(v.doc).Elem()).Interface()
			if err := Unmarshal(want, got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(v.doc, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestGoldenSignature(t *testing.T) {
	signed, err := Sign(fullDesired(), testKey) // Ed25519 signatures are the same each time
	if err != nil {
		t.Fatal(err)
	}
	want := golden(t, "signed-desired.cbor", signed)
	golden(t, "signed-desired.diag", []byte(readable(signed)))
	got, err := Verify(want, testHost, []ed25519.PublicKey{testKey.Public().(ed25519.PublicKey)})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fullDesired(), got); diff != "" {
		t.Error(diff)
	}
	digest, err := got.Digest()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "desired-digest.txt", fmt.Appendf(nil, "%x\n", digest))
}

func TestGoldenReference(t *testing.T) {
	ref := Refer(testHost, 42, []byte("a signed document"))
	signed, err := SignReference(ref, testKey)
	if err != nil {
		t.Fatal(err)
	}
	want := golden(t, "signed-reference.cbor", signed)
	golden(t, "signed-reference.diag", []byte(readable(signed)))
	got, err := VerifyReference(want, testHost, pinned)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(ref, got); diff != "" {
		t.Error(diff)
	}
}

func TestGoldenEnrolment(t *testing.T) {
	for name, doc := range map[string]any{"enroll": fullEnroll(), "enrolled": fullEnrolled()} {
		data, err := json.MarshalIndent(doc, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		want := golden(t, name+".json", append(data, '\n'))
		got := reflect.New(reflect.TypeOf(doc).Elem()).Interface()
		if err := json.Unmarshal(want, got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(doc, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	golden(t, "enroll-proof.txt", append(EnrollProof("rgj_abc", []byte{0xde, 0xad}), '\n'))
}

// TestNoStrayVectors: a vector that nobody reads any more protects nothing.
func TestNoStrayVectors(t *testing.T) {
	known := map[string]bool{"signed-desired.cbor": true, "signed-desired.diag": true, "desired-digest.txt": true, "signed-reference.cbor": true, "signed-reference.diag": true, "enroll.json": true, "enrolled.json": true, "enroll-proof.txt": true}
	for _, v := range vectors() {
		known[v.name+".cbor"], known[v.name+".diag"] = true, true
	}
	files, err := os.ReadDir("testdata/v1")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !known[f.Name()] {
			t.Errorf("testdata/v1/%s belongs to no document", f.Name())
		}
	}
}
