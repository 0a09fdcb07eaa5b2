package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
)

// list is what the API answers to every question for many.
type list[T any] struct {
	Items []T `json:"items"`
}

type workspaceRow struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"created_at"`
}

type keyRow struct {
	ID          string     `json:"id"`
	Name        string     `json:"name"`
	Fingerprint string     `json:"fingerprint"`
	CreatedAt   time.Time  `json:"created_at"`
	UsedAt      *time.Time `json:"used_at,omitempty"`
}

type tokenRow struct {
	ID        string     `json:"id"`
	Name      string     `json:"name"`
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
	UsedAt    *time.Time `json:"used_at,omitempty"`
	Secret    string     `json:"secret,omitempty"`
}

type userRow struct {
	ID       string `json:"id"`
	Email    string `json:"email"`
	Name     string `json:"name"`
	Admin    bool   `json:"admin"`
	Disabled bool   `json:"disabled"`
}

type memberRow struct {
	Email   string    `json:"email"`
	Role    string    `json:"role"`
	AddedAt time.Time `json:"added_at"`
}

func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: func(cmd *cobra.Command, got []string) error {
		if len(got) > 0 {
			return usageError{fmt.Errorf("%s has no command %q", cmd.CommandPath(), got[0])}
		}
		return nil
	}}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.AddCommand(commands...)
	return cmd
}

func (a *app) workspaceCommand() *cobra.Command {
	ls := &cobra.Command{Use: "ls", Short: "List workspaces", Args: args(0, 0, "no argument"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return fetch(a, cmd, "/api/v1/workspaces", func(w io.Writer, all list[workspaceRow]) {
				row(w, "NAME", "ID", "AGE")
				for _, ws := range all.Items {
					row(w, ws.Name, ws.ID, age(ws.CreatedAt))
				}
			})
		}}
	create := &cobra.Command{Use: "create NAME", Short: "Make a workspace (platform admins)", Args: args(1, 1, "a name")}
	owner := create.Flags().String("owner", "", "e-mail address of its owner (default: you)")
	create.RunE = func(cmd *cobra.Command, args []string) error {
		return a.post(cmd, "/api/v1/workspaces", map[string]string{"name": args[0], "owner": *owner}, "Workspace "+args[0]+" is there.")
	}
	add := &cobra.Command{Use: "add EMAIL", Short: "Add a member or change their role", Args: args(1, 1, "an e-mail address")}
	role := add.Flags().String("role", "member", "owner, admin, member or viewer")
	add.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		if err := c.call(cmd.Context(), http.MethodPut, c.in("members", args[0]), map[string]string{"role": *role}, nil); err != nil {
			return err
		}
		return a.say(fmt.Sprintf("%s is %s of %s.", args[0], *role, c.Workspace))
	}
	members := &cobra.Command{Use: "members", Short: "List the members of a workspace", Args: args(0, 0, "no argument"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			return fetch(a, cmd, c.in("members"), func(w io.Writer, all list[memberRow]) {
				row(w, "EMAIL", "ROLE", "SINCE")
				for _, m := range all.Items {
					row(w, m.Email, m.Role, m.AddedAt.Local().Format("2006-01-02"))
				}
			})
		}}
	remove := &cobra.Command{Use: "remove EMAIL", Short: "Remove a member; what they made stays", Args: args(1, 1, "an e-mail address"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			return a.remove(cmd, c.in("members", args[0]), args[0]+" is no member of "+c.Workspace+" any more.")
		}}
	return group("workspace", "Workspaces and their members", ls, create, members, add, remove)
}

func (a *app) userCommand() *cobra.Command {
	ls := &cobra.Command{Use: "ls", Short: "List users (platform admins)", Args: args(0, 0, "no argument"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return fetch(a, cmd, "/api/v1/users", func(w io.Writer, all list[userRow]) {
				row(w, "EMAIL", "NAME", "ADMIN", "DISABLED", "ID")
				for _, u := range all.Items {
					row(w, u.Email, u.Name, u.Admin, u.Disabled, u.ID)
				}
			})
		}}
	create := &cobra.Command{Use: "create EMAIL", Short: "Make a user; the password is asked for, or the first line of stdin", Args: args(1, 1, "an e-mail address")}
	admin := create.Flags().Bool("admin", false, "make a platform admin")
	create.RunE = func(cmd *cobra.Command, args []string) error {
		password, err := a.secret(cmd.Context(), bufio.NewReader(os.Stdin), "Password of "+args[0]+": ", false)
		if err != nil {
			return err
		}
		in := map[string]any{"email": args[0], "password": password, "admin": *admin}
		return a.post(cmd, "/api/v1/users", in, "User "+args[0]+" is there.")
	}
	return group("user", "Users (platform admins)", ls, create)
}

func (a *app) keyCommand() *cobra.Command {
	add := &cobra.Command{Use: "add [FILE.pub]", Short: "Register your public SSH key", Args: args(0, 1, "at most one file"),
		Long: "Register your public SSH key, so that plain ssh lets you in.\nWithout a file: ~/.ssh/id_ed25519.pub, or the first other key there.",
		RunE: func(cmd *cobra.Command, args []string) error {
			file, err := keyFile(args)
			if err != nil {
				return err
			}
			line, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			return a.post(cmd, "/api/v1/account/keys", map[string]string{"public_key": string(line)}, "Key "+file+" is registered; ssh lets you in with it.")
		}}
	ls := &cobra.Command{Use: "ls", Short: "List your SSH keys", Args: args(0, 0, "no argument"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return fetch(a, cmd, "/api/v1/account/keys", func(w io.Writer, all list[keyRow]) {
				row(w, "ID", "NAME", "FINGERPRINT", "LAST USED")
				for _, k := range all.Items {
					row(w, k.ID, k.Name, k.Fingerprint, ago(k.UsedAt))
				}
			})
		}}
	rm := &cobra.Command{Use: "rm ID", Short: "Remove one of your SSH keys, and end what it has open", Args: args(1, 1, "an id from key ls"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.remove(cmd, "/api/v1/account/keys/"+url.PathEscape(args[0]), "Key removed.")
		}}
	return group("key", "Your SSH keys", add, ls, rm)
}

func (a *app) tokenCommand() *cobra.Command {
	create := &cobra.Command{Use: "create NAME", Short: "Make an API token; it is shown once", Args: args(1, 1, "a name")}
	days := create.Flags().Int("days", 0, "days until it expires (default: never)")
	create.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		var t tokenRow
		if err := c.call(cmd.Context(), http.MethodPost, "/api/v1/account/tokens", map[string]any{"name": args[0], "days": *days}, &t); err != nil {
			return err
		}
		return a.show(t, func(w io.Writer) { fmt.Fprintln(w, t.Secret) })
	}
	ls := &cobra.Command{Use: "ls", Short: "List your API tokens", Args: args(0, 0, "no argument"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return fetch(a, cmd, "/api/v1/account/tokens", func(w io.Writer, all list[tokenRow]) {
				row(w, "ID", "NAME", "EXPIRES", "LAST USED")
				for _, t := range all.Items {
					row(w, t.ID, t.Name, date(t.ExpiresAt, "never"), ago(t.UsedAt))
				}
			})
		}}
	rm := &cobra.Command{Use: "rm ID", Short: "Revoke an API token", Args: args(1, 1, "an id from token ls"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.remove(cmd, "/api/v1/account/tokens/"+url.PathEscape(args[0]), "Token revoked.")
		}}
	return group("token", "Your API tokens", create, ls, rm)
}

// keyFile returns the file given, or the best public key in ~/.ssh.
func keyFile(given []string) (string, error) {
	if len(given) == 1 {
		return given[0], nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", err
	}
	found, _ := filepath.Glob(filepath.Join(home, ".ssh", "id_*.pub"))
	for _, f := range found {
		if filepath.Base(f) == "id_ed25519.pub" {
			return f, nil
		}
	}
	if len(found) == 0 {
		return "", errors.New("there is no key in ~/.ssh; make one first: ssh-keygen -t ed25519")
	}
	return found[0], nil
}

// fetch reads path and shows it.
func fetch[T any](a *app, cmd *cobra.Command, path string, print func(w io.Writer, v T)) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	var v T
	if err := c.call(cmd.Context(), http.MethodGet, path, nil, &v); err != nil {
		return err
	}
	return a.show(v, func(w io.Writer) { print(w, v) })
}

// post sends in to path and says done.
func (a *app) post(cmd *cobra.Command, path string, in any, done string) error {
	return a.send(cmd, http.MethodPost, path, in, done)
}

func (a *app) send(cmd *cobra.Command, method, path string, in any, done string) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	var out any
	if err := c.call(cmd.Context(), method, path, in, &out); err != nil {
		return err
	}
	if a.output == "json" && out != nil {
		return a.show(out, nil)
	}
	return a.say(done)
}

func (a *app) remove(cmd *cobra.Command, path, done string) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	if err := c.call(cmd.Context(), http.MethodDelete, path, nil, nil); err != nil {
		return err
	}
	return a.say(done)
}
