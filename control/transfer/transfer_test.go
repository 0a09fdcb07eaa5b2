package transfer

import (
	"bytes"
	"crypto/rand"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func TestParse(t *testing.T) {
	for text, want := range map[string]Place{
		"a/b":              {Path: "a/b"},
		"box:/a/b":         {Path: "/a/b", Environment: "box"},
		"box.lab:a":        {Path: "a", Environment: "box.lab"},
		"box:":             {Path: ".", Environment: "box"},
		"box:~":            {Path: ".", Environment: "box"},
		"box:~/a":          {Path: "a", Environment: "box"},
		"box:/a:b":         {Path: "/a:b", Environment: "box"},
		"./a:b":            {Path: "./a:b"},
		"/a:b":             {Path: "/a:b"},
		"a/b:c":            {Path: "a/b:c"},
		":a":               {Path: ":a"},
		"env_01234abcd:/x": {Path: "/x", Environment: "env_01234abcd"},
	} {
		if got := Parse(text); got != want {
			t.Errorf("%s: %+v, want %+v", text, got, want)
		}
	}
}

// TestTree: a folder with all that there is comes back as it was.
func TestTree(t *testing.T) {
	src, there, back, again := t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir()
	tree := filepath.Join(src, "tree")
	plant(t, tree, map[string]string{
		"empty": "", "small": "text", "sub/deep/deeper/file": "x", "sub/a b\n'ü": "odd", "hollow/": "", "link -> sub/deep": "", "astray -> /nowhere": "",
		"big": string(random(3<<20 + 7)), "even": string(random(256 << 10)), strings.Repeat("n", 255): "long",
	})
	for name, mode := range map[string]fs.FileMode{"small": 0o755, "empty": 0o400, "sub/deep": 0o555, "sub": 0o711} {
		if err := os.Chmod(filepath.Join(tree, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"sub/deep/deeper", "sub/deep", "sub", "hollow", ""} {
		if err := os.Chtimes(filepath.Join(tree, name), when, when); err != nil {
			t.Fatal(err)
		}
	}
	for _, words := range [][]string{{tree, "box:" + there}, {"box:" + there + "/tree", back}, {"box:" + there + "/tree", "other:" + again}} {
		if err := cp(t, words...); err != nil {
			t.Fatalf("%q: %v", words, err)
		}
	}
	want := look(t, tree)
	for _, dir := range []string{there, back, again} {
		if d := cmp.Diff(want, look(t, filepath.Join(dir, "tree"))); d != "" {
			t.Errorf("%s: %s", dir, d)
		}
	}
	if !bytes.Equal(must(t, filepath.Join(back, "tree/big")), must(t, filepath.Join(tree, "big"))) {
		t.Error("big is another")
	}
	plant(t, tree, map[string]string{"small": "another text"})
	if err := cp(t, tree+"/.", "box:"+there+"/tree"); err != nil {
		t.Fatal(err)
	}
	if got, want := names(t, there+"/tree"), names(t, tree); got != want || string(must(t, there+"/tree/small")) != "another text" {
		t.Errorf("copied once more: %s, want %s", got, want)
	}
}

func must(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestNames: what a copy is called, and where there is none.
func TestNames(t *testing.T) {
	plan := map[string]string{"file": "1", "other": "2", "dir/in": "3", "have/old": "4", "to-file -> file": "", "to-have -> have": ""}
	for _, c := range []struct {
		src, dst string // of src: several words
		want     string // below dst's folder, or the error
	}{
		{"file", "have", "file have have/file have/old"},
		{"file", "have/", "file have have/file have/old"},
		{"file", "new", "file have have/old new"},
		{"file", "have/old", "file have have/old"},
		{"file", "new/", "new/: there is no such folder; make it first"},
		{"file", "no/new", "no: there is no such folder; make it first"},
		{"file", "file/", "file/ is a file; a folder is needed there"},
		{"file other", "have", "file have have/file have/old have/other"},
		{"file other", "new", "new: there is no such folder"},
		{"file other", "file", "is a file; a folder is needed"},
		{"dir", "have", "file have have/dir have/dir/in have/old"},
		{"dir", "new", "file have have/old new new/in"},
		{"dir", "new/", "file have have/old new new/in"},
		{"dir/", "have", "file have have/dir have/dir/in have/old"},
		{"dir/.", "have", "file have have/in have/old"},
		{"dir/.", "new", "file have have/old new new/in"},
		{"dir", "file", "file is a file; a folder is needed there"},
		{"to-file", "have", "file have have/old have/to-file"},
		{"to-have", "new", "file have have/old new new/old"},
		{"none", "new", "none: there is no such file or folder"},
	} {
		for _, way := range []string{"up", "down"} {
			src, dst := t.TempDir(), t.TempDir()
			plant(t, src, plan)
			plant(t, dst, map[string]string{"file": "old", "have/old": "old"})
			from, to := "", "box:"
			if way == "down" {
				from, to = "box:", ""
			}
			var words []string
			for word := range strings.FieldsSeq(c.src) {
				words = append(words, from+src+"/"+word)
			}
			err := cp(t, append(words, to+dst+"/"+c.dst)...)
			if got := names(t, dst); err == nil && got != c.want || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: cp %s %s: %v, there is %s; want %s", way, c.src, c.dst, err, got, c.want)
			}
		}
	}
}
