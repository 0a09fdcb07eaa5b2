package state

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/remotegpu/remotegpu/protocol"
)

const testHost = protocol.PrefixHost + "00000000000000000000"

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// enrolled returns a store that obeys the returned key.
func enrolled(t *testing.T, dir string) (*Store, ed25519.PrivateKey) {
	t.Helper()
	s := open(t, dir)
	key, err := s.HostKey()
	if err != nil {
		t.Fatal(err)
	}
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	id := &Identity{
		Server: "https://control.example", CA: "pem", Host: testHost, Name: "gpu-1",
		PrivateKey: key, Keys: []ed25519.PublicKey{public}, Registry: "control.example:443",
	}
	if err := s.SaveIdentity(id); err != nil {
		t.Fatal(err)
	}
	return s, private
}

func reopen(t *testing.T, s *Store) *Store {
	t.Helper()
	s.Close()
	return open(t, s.Dir())
}

func sign(t *testing.T, d protocol.Desired, key ed25519.PrivateKey) []byte {
	t.Helper()
	d.Version = protocol.Version
	if d.Host == "" {
		d.Host = testHost
	}
	b, err := protocol.Sign(&d, key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func reasons(s *Store) []string {
	var list []string
	for _, e := range s.Events(100) {
		list = append(list, e.Reason)
	}
	return list
}

func TestIdentitySurvives(t *testing.T) {
	s, _ := enrolled(t, t.TempDir())
	want := s.Identity()
	if diff := cmp.Diff(want, reopen(t, s).Identity()); diff != "" {
		t.Errorf("identity after a restart (-before +after):\n%s", diff)
	}
	for _, name := range []string{keyFile, identityFile, counterFile} {
		stat, err := os.Stat(filepath.Join(s.Dir(), name))
		if err != nil || stat.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, error %v, want 0600", name, stat.Mode(), err)
		}
	}
}

func TestOneProcessAtATime(t *testing.T) {
	s := open(t, t.TempDir())
	if _, err := Open(s.Dir()); !errors.Is(err, ErrBusy) {
		t.Fatalf("second Open: %v, want ErrBusy", err)
	}
	if _, err := ReadIdentity(s.Dir()); !errors.Is(err, ErrNotEnrolled) {
		t.Fatalf("ReadIdentity: %v, want ErrNotEnrolled", err)
	}
}

func TestAcceptDesired(t *testing.T) {
	s, key := enrolled(t, t.TempDir())
	_, stranger, _ := ed25519.GenerateKey(nil)
	current := sign(t, protocol.Desired{Generation: 7}, key)
	if d, fresh, err := s.AcceptDesired(current); err != nil || !fresh || d.Generation != 7 {
		t.Fatalf("first document: %+v, fresh %v, %v", d, fresh, err)
	}
	if _, fresh, err := s.AcceptDesired(current); err != nil || fresh {
		t.Fatalf("the same again: fresh %v, %v", fresh, err)
	}
	refused := []struct {
		kind   string
		signed []byte
	}{
		{RefusedForged, sign(t, protocol.Desired{Generation: 8}, stranger)},
		{RefusedHost, sign(t, protocol.Desired{Generation: 8, Host: protocol.NewID(protocol.PrefixHost)}, key)},
		{RefusedOlder, sign(t, protocol.Desired{Generation: 6}, key)},
		{RefusedConflict, sign(t, protocol.Desired{Generation: 7, IssuedAt: 1}, key)},
		{RefusedGarbage, []byte("garbage")},
		{RefusedGarbage, nil},
		{RefusedSize, make([]byte, protocol.MaxDocument+1)},
	}
	for _, c := range refused {
		_, _, err := s.AcceptDesired(c.signed)
		var r *Refusal
		if !errors.As(err, &r) || r.Kind != c.kind {
			t.Errorf("%s: got %v", c.kind, err)
		}
	}
	for range 2 {
		if d, digest := s.Desired(); d == nil || d.Generation != 7 || len(digest) != 32 {
			t.Fatalf("obeys %+v, want generation 7", d)
		}
		s = reopen(t, s)
	}
}

func TestOldGenerationStaysRefusedWithoutTheFile(t *testing.T) {
	s, key := enrolled(t, t.TempDir())
	current := sign(t, protocol.Desired{Generation: 7}, key)
	if _, _, err := s.AcceptDesired(current); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.Dir(), desiredFile), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, s)
	if d, _ := s.Desired(); d != nil {
		t.Fatalf("obeys %+v from a damaged file", d)
	}
	if diff := cmp.Diff([]string{"StateCorrupt"}, reasons(s)); diff != "" {
		t.Error(diff)
	}
	var r *Refusal
	if _, _, err := s.AcceptDesired(sign(t, protocol.Desired{Generation: 6}, key)); !errors.As(err, &r) || r.Kind != RefusedOlder {
		t.Errorf("rollback: %v", err)
	}
	if _, fresh, err := s.AcceptDesired(current); err != nil || !fresh {
		t.Errorf("the current one again: fresh %v, %v", fresh, err)
	}
	kept, _ := filepath.Glob(filepath.Join(s.Dir(), desiredFile+".corrupt*"))
	if len(kept) != 1 {
		t.Fatalf("kept %v", kept)
	}
	if b, _ := os.ReadFile(kept[0]); string(b) != "rubbish" {
		t.Errorf("damaged file was not kept: %q", b)
	}
}

func TestLastDamagedFilesAreKept(t *testing.T) {
	s, _ := enrolled(t, t.TempDir())
	for i := range keepAside + 2 {
		for _, name := range []string{desiredFile, counterFile} {
			if err := os.WriteFile(filepath.Join(s.Dir(), name), []byte{'0' + byte(i)}, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s = reopen(t, s)
	}
	for _, name := range []string{desiredFile, counterFile} {
		kept, _ := filepath.Glob(filepath.Join(s.Dir(), name+".corrupt*"))
		var content string
		for _, path := range kept {
			b, _ := os.ReadFile(path)
			content += string(b)
		}
		if content != "234" {
			t.Errorf("of %s are kept %q, want the last three, 234: %v", name, content, kept)
		}
	}
}

// TestOldGenerationStaysRefusedAfterLoss loses every two of the three files that
// know the generation, and what control still sends is obeyed.
func TestOldGenerationStaysRefusedAfterLoss(t *testing.T) {
	files := []string{desiredFile, counterFile, floorFile}
	lose := map[string]func(path string) error{
		"gone":    os.Remove,
		"rubbish": func(p string) error { return os.WriteFile(p, []byte("\x00{"), 0o600) },
	}
	for how, lose := range lose {
		for _, left := range files {
			t.Run(how+" but "+left, func(t *testing.T) {
				s, key := enrolled(t, t.TempDir())
				current := sign(t, protocol.Desired{Generation: 7}, key)
				for _, signed := range [][]byte{sign(t, protocol.Desired{Generation: 6}, key), current} {
					if _, _, err := s.AcceptDesired(signed); err != nil {
						t.Fatal(err)
					}
				}
				for _, name := range files {
					if name == left {
						continue
					}
					if err := lose(filepath.Join(s.Dir(), name)); err != nil {
						t.Fatal(err)
					}
				}
				s = reopen(t, reopen(t, s)) // what was restored is kept, too
				refused := map[string][]byte{
					RefusedOlder:    sign(t, protocol.Desired{Generation: 6}, key),
					RefusedConflict: sign(t, protocol.Desired{Generation: 7, IssuedAt: 1}, key),
				}
				for kind, signed := range refused {
					var r *Refusal
					if _, _, err := s.AcceptDesired(signed); !errors.As(err, &r) || r.Kind != kind {
						t.Errorf("%s: %v", kind, err)
					}
				}
				if _, fresh, err := s.AcceptDesired(current); err != nil || fresh != (left != desiredFile) {
					t.Errorf("the current one again: fresh %v, %v", fresh, err)
				}
				if _, fresh, err := s.AcceptDesired(sign(t, protocol.Desired{Generation: 8}, key)); err != nil || !fresh {
					t.Errorf("the next one: fresh %v, %v", fresh, err)
				}
			})
		}
	}
}

func TestCountersGrow(t *testing.T) {
	s, _ := enrolled(t, t.TempDir())
	epoch, seq := s.NextEpoch(), s.NextStatusSeq()
	for range 3 {
		s = reopen(t, s)
		nextEpoch, nextSeq := s.NextEpoch(), s.NextStatusSeq()
		if nextEpoch <= epoch || nextSeq <= seq {
			t.Fatalf("epoch %d after %d, status %d after %d", nextEpoch, epoch, nextSeq, seq)
		}
		epoch, seq = nextEpoch, nextSeq
	}
}

func TestCountersGrowOverTheLossOfTheFile(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"gone":    os.Remove,
		"empty":   func(p string) error { return os.Truncate(p, 0) },
		"cut":     func(p string) error { return os.Truncate(p, 20) },
		"huge":    func(p string) error { return os.WriteFile(p, []byte(`{"epoch":18446744073709551615}`), 0o600) },
		"rubbish": func(p string) error { return os.WriteFile(p, []byte("\x00\xff{"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := enrolled(t, t.TempDir())
			control := time.Now().Add(-time.Hour) // whatever the host's clock says
			s.CountFrom(control)
			epoch, seq := s.NextEpoch(), s.NextStatusSeq()
			s.Append(protocol.Event{Reason: "Before"})
			event := s.Events(1)[0].Seq
			s.Close()
			if err := damage(filepath.Join(s.Dir(), counterFile)); err != nil {
				t.Fatal(err)
			}
			s = open(t, s.Dir())
			if s.Identity() == nil {
				t.Error("identity is lost")
			}
			s.Append(protocol.Event{Reason: "After"})
			s.CountFrom(control.Add(time.Second))
			s.Append(protocol.Event{Reason: "Later"})
			events := s.Events(10)
			for i := 1; i < len(events); i++ {
				if events[i].Seq != events[i-1].Seq+1 {
					t.Errorf("event %d follows %d", events[i].Seq, events[i-1].Seq)
				}
			}
			if s.NextEpoch() <= epoch || s.NextStatusSeq() <= seq || events[0].Seq <= event {
				t.Errorf("counters went back: %+v", s.counters)
			}
			if name != "gone" && events[0].Reason != "StateCorrupt" {
				t.Errorf("no event tells of the damage: %+v", events)
			}
		})
	}
}

func TestDamagedIdentity(t *testing.T) {
	for _, name := range []string{identityFile, keyFile} {
		t.Run(name, func(t *testing.T) {
			s, _ := enrolled(t, t.TempDir())
			s.Close()
			if err := os.WriteFile(filepath.Join(s.Dir(), name), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
			s = open(t, s.Dir())
			if s.Identity() != nil {
				t.Error("a damaged identity is used")
			}
			events := s.Events(1)
			if len(events) != 1 || !strings.Contains(events[0].Message, "enrol this host again") {
				t.Errorf("events %+v say not what to do", events)
			}
			if _, err := s.HostKey(); err != nil {
				t.Errorf("HostKey: %v", err)
			}
		})
	}
}

func TestEvents(t *testing.T) {
	s, _ := enrolled(t, t.TempDir())
	s.Append(protocol.Event{Reason: "Attack", Severity: protocol.SeveritySecurity, Message: "bad \xff\x00 bytes"})
	for range maxEvents {
		s.counters.add(protocol.Event{Reason: "Pulled", Severity: protocol.SeverityNormal})
	}
	s.Append(protocol.Event{Reason: "Last"})
	s = reopen(t, s)
	all := s.Events(2 * maxEvents)
	if len(all) != maxEvents || all[0].Reason != "Attack" || all[len(all)-1].Reason != "Last" {
		t.Fatalf("kept %d events, first %+v", len(all), all[0])
	}
	if all[0].Message != "bad ? bytes" {
		t.Errorf("message %q", all[0].Message)
	}
	st := protocol.Status{Version: protocol.Version, Events: s.Events(1)}
	if err := st.Validate(); err != nil {
		t.Errorf("the server takes no status with it: %v", err)
	}
	if got := s.Events(3); len(got) != 3 {
		t.Errorf("Events(3) gave %d", len(got))
	}
	s.AckEvents(all[len(all)-2].Seq)
	if diff := cmp.Diff([]string{"Last"}, reasons(reopen(t, s))); diff != "" {
		t.Error(diff)
	}
}

func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skip("needs root to mount a tmpfs: ", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	s, key := enrolled(t, dir)
	if _, _, err := s.AcceptDesired(sign(t, protocol.Desired{Generation: 1}, key)); err != nil {
		t.Fatal(err)
	}
	before, _ := os.ReadFile(filepath.Join(dir, desiredFile))
	filler, _ := os.Create(filepath.Join(dir, "filler"))
	if _, err := filler.Write(make([]byte, 1<<20)); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("tmpfs takes all: %v", err)
	}
	filler.Close()
	next := sign(t, protocol.Desired{Generation: 2}, key)
	_, _, err := s.AcceptDesired(next)
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "is full") {
		t.Fatalf("on a full disk: %v", err)
	}
	if after, _ := os.ReadFile(filepath.Join(dir, desiredFile)); !bytes.Equal(before, after) {
		t.Error("the old file is gone")
	}
	epoch := s.NextEpoch()
	if s.NextEpoch() <= epoch {
		t.Error("epoch stands still on a full disk")
	}
	if diff := cmp.Diff([]string{"StateNotSaved"}, reasons(s)); diff != "" {
		t.Error(diff)
	}
	os.Remove(filler.Name())
	if _, fresh, err := s.AcceptDesired(next); err != nil || !fresh {
		t.Fatalf("with space again: fresh %v, %v", fresh, err)
	}
	if diff := cmp.Diff([]string{"StateNotSaved", "StateSaved"}, reasons(reopen(t, s))); diff != "" {
		t.Error(diff)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("temporary files are left: %v", left)
	}
}

func TestNewHostStartsItsGenerationsAnew(t *testing.T) {
	s, key := enrolled(t, t.TempDir())
	if _, _, err := s.AcceptDesired(sign(t, protocol.Desired{Generation: 9}, key)); err != nil {
		t.Fatal(err)
	}
	other := *s.Identity()
	other.Host = protocol.NewID(protocol.PrefixHost)
	if err := s.SaveIdentity(&other); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, s)
	if d, _ := s.Desired(); d != nil {
		t.Errorf("obeys the old host's document %+v", d)
	}
	if _, fresh, err := s.AcceptDesired(sign(t, protocol.Desired{Generation: 1, Host: other.Host}, key)); err != nil || !fresh {
		t.Errorf("first document: fresh %v, %v", fresh, err)
	}
}
