package remotegpu_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/go/packages"
)

// TestPeoplesSystems: the CLI, which shares its program with the server, is
// right in type on Windows, whose system calls are the furthest from Linux's;
// macOS has more of them. No code is made, and what others' functions hold is
// not looked at, so that it takes seconds.
func TestPeoplesSystems(t *testing.T) {
	here, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	parse := func(fset *token.FileSet, name string, src []byte) (*ast.File, error) {
		file, err := parser.ParseFile(fset, name, src, parser.SkipObjectResolution)
		if file != nil && !strings.HasPrefix(name, here) {
			for _, d := range file.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok {
					fn.Body = nil
				}
			}
		}
		return file, err
	}
	found, err := packages.Load(&packages.Config{
		Mode:      packages.LoadAllSyntax,
		Env:       append(os.Environ(), "GOOS=windows", "GOARCH=amd64", "CGO_ENABLED=0"),
		ParseFile: parse,
	}, "./control")
	if err != nil {
		t.Fatal(err)
	}
	ours := 0
	packages.Visit(found, nil, func(p *packages.Package) {
		if !strings.HasPrefix(p.PkgPath+"/", module) {
			return
		}
		ours++
		for _, err := range p.Errors {
			t.Errorf("%s: %v", p.PkgPath, err)
		}
	})
	if ours < 20 {
		t.Errorf("%d packages of ours looked at", ours)
	}
}
