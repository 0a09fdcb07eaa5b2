package state

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/remotegpu/remotegpu/protocol"
)

// FuzzOpen opens a folder whose files hold anything.
func FuzzOpen(f *testing.F) {
	f.Add([]byte(`{}`), []byte(`{}`), []byte(``), []byte(``), []byte(``))
	f.Add([]byte(`{"server":"https://h","host":"`+testHost+`","keys":["AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="]}`),
		[]byte(`{"epoch":5,"events":[{"Seq":9}]}`), []byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"), []byte{0xd2},
		[]byte(`{"host":"`+testHost+`","generation":18446744073709551615}`))
	f.Add([]byte("\x00"), []byte(`{"epoch":-1}`), []byte("x"), []byte("x"), []byte(`{"generation":3}`))
	f.Fuzz(func(t *testing.T, identity, counter, key, desired, obeyed []byte) {
		dir := t.TempDir()
		for name, content := range map[string][]byte{identityFile: identity, counterFile: counter, keyFile: key, desiredFile: desired, floorFile: obeyed} {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if s.NextEpoch() == 0 || s.NextStatusSeq() == 0 {
			t.Error("counters start at 0")
		}
		if d, _ := s.Desired(); d != nil {
			t.Errorf("obeys %+v, which nobody signed", d)
		}
		s.Append(protocol.Event{Reason: "Test"})
	})
}
