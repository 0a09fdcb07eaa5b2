package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
)

type appRow struct {
	EnvironmentName string   `json:"environment_name"`
	WorkspaceName   string   `json:"workspace_name"`
	Name            string   `json:"name"`
	Port            int      `json:"port,omitempty"`
	Visibility      string   `json:"visibility"`
	Users           []string `json:"users"`
	URL             string   `json:"url,omitempty"`
}

func (r appRow) who() string {
	if r.Visibility == "users" {
		return strings.Join(r.Users, ", ")
	}
	return r.Visibility
}

func (a *app) appCommand() *cobra.Command {
	cmd := group("app", "What environments serve to browsers", a.appList(), a.appExpose(), a.appRemove(), a.appOpen())
	cmd.Long = `Every port that an environment listens on is an app: whoever may have a shell
there can open it in a browser. Expose gives one a name, or opens it to others.`
	cmd.Example = "  remotegpu app open my-env 6006\n  remotegpu app expose my-env 7860 --name demo --public"
	return cmd
}

func (a *app) appList() *cobra.Command {
	return &cobra.Command{Use: "ls", Short: "List apps that were exposed", Args: args(0, 0, "no argument"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			return fetch(a, cmd, c.in("apps"), func(w io.Writer, all list[appRow]) {
				row(w, "ENVIRONMENT", "APP", "PORT", "FOR", "URL")
				for _, r := range all.Items {
					port := ""
					if r.Port > 0 {
						port = fmt.Sprint(r.Port)
					}
					row(w, r.EnvironmentName, r.Name, port, r.who(), r.URL)
				}
			})
		}}
}

func (a *app) appExpose() *cobra.Command {
	var name string
	var users []string
	var public, private, base bool
	cmd := &cobra.Command{
		Use: "expose ENV PORT|jupyter", Short: "Say who may use a port, and what it is called", Args: args(2, 2, "an environment and a port"),
		Long: `Say who may use a port of an environment: by default whoever may have a shell
there, with --private you alone, with --users these people, with --public
anybody who has the address, without a login.`,
		Example: "  remotegpu app expose my-env 7860 --users ann@example.org,bob@example.org\n  remotegpu app expose my-env 8000 --name api --public",
		RunE: func(cmd *cobra.Command, got []string) error {
			body, path := map[string]any{"visibility": "workspace", "base_path": base}, got[1]
			for visibility, chosen := range map[string]bool{"public": public, "private": private, "users": len(users) > 0} {
				if chosen {
					body["visibility"] = visibility
				}
			}
			if len(users) > 0 {
				body["users"] = users
			}
			if name != "" {
				var port int
				if _, err := fmt.Sscanf(got[1], "%d", &port); err != nil {
					return usageError{fmt.Errorf("--name gives a port a name, and %q is no port", got[1])}
				}
				body["port"], path = port, name
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			var r appRow
			if err := c.call(cmd.Context(), http.MethodPut, c.environment(got[0], "apps", path), body, &r); err != nil {
				return err
			}
			return a.show(r, func(w io.Writer) {
				row(w, "ENVIRONMENT", "APP", "FOR", "URL")
				row(w, r.EnvironmentName, r.Name, r.who(), r.URL)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&name, "name", "", "a word for the port, part of its address")
	f.StringSliceVar(&users, "users", nil, "`E-MAIL` addresses of those who may use it beside you, with commas between")
	f.BoolVar(&public, "public", false, "for anybody, without a login")
	f.BoolVar(&private, "private", false, "for you alone")
	f.BoolVar(&base, "base-path", false, "the program makes its links with the path that it is reached under, and is told it")
	cmd.MarkFlagsMutuallyExclusive("users", "public", "private")
	return cmd
}

func (a *app) appRemove() *cobra.Command {
	return &cobra.Command{Use: "rm ENV APP", Short: "Take back what was said of a port; it stays reachable for who may have a shell", Args: args(2, 2, "an environment and an app"),
		RunE: func(cmd *cobra.Command, got []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			if err := c.call(cmd.Context(), http.MethodDelete, c.environment(got[0], "apps", got[1]), nil, nil); err != nil {
				return err
			}
			return a.say("App " + got[1] + " of " + got[0] + " is as every port now.")
		}}
}

func (a *app) appOpen() *cobra.Command {
	cmd := &cobra.Command{Use: "open ENV PORT|NAME", Short: "Open an app in the browser, logged in", Args: args(2, 2, "an environment and an app")}
	noBrowser := cmd.Flags().Bool("no-browser", false, "print the address instead; it works once, within 30 seconds")
	cmd.RunE = func(cmd *cobra.Command, got []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		var out struct {
			URL string `json:"url"`
		}
		name, ws := c.whose(got[0])
		body := map[string]string{"app": ws + "/" + name + "/" + got[1]}
		if err := c.call(cmd.Context(), http.MethodPost, "/api/v1/apps/open", body, &out); err != nil {
			return err
		}
		return a.browse(cmd.Context(), out.URL, *noBrowser || a.output == "json", out)
	}
	return cmd
}

func (a *app) jupyterCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "jupyter ENV", Short: "Jupyter of an environment, in the browser", Args: args(1, 1, "an environment"),
		Long: `Start Jupyter in an environment, unless it runs, and open it in the browser,
logged in. It goes on when browser or server leave, and what its kernels print
meanwhile is there when they are back.`,
	}
	noBrowser := cmd.Flags().Bool("no-browser", false, "print an address instead; it works once, within 30 seconds")
	cmd.RunE = func(cmd *cobra.Command, got []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		var out struct {
			URL string `json:"url"`
			App appRow `json:"app"`
		}
		if err := c.call(cmd.Context(), http.MethodPost, c.environment(got[0], "jupyter"), nil, &out); err != nil {
			return err
		}
		if a.output != "json" {
			fmt.Fprintf(a.errOut, "Jupyter of %s is at %s\n", got[0], out.App.URL)
		}
		return a.browse(cmd.Context(), out.URL, *noBrowser || a.output == "json", out)
	}
	return cmd
}

// browse opens an address in the person's browser, or prints it.
func (a *app) browse(ctx context.Context, address string, print bool, v any) error {
	if !print {
		err := openBrowser(ctx, address)
		if err == nil {
			return nil
		}
		fmt.Fprintf(a.errOut, "No browser could be started here (%v). Open this within 30 seconds; it works once:\n", err)
	}
	return a.show(v, func(w io.Writer) { fmt.Fprintln(w, address) })
}

func openBrowser(ctx context.Context, address string) error {
	name, args := "xdg-open", []string{address}
	switch runtime.GOOS {
	case "darwin":
		name = "open"
	case "windows":
		name, args = "rundll32", []string{"url.dll,FileProtocolHandler", address}
	default:
		if os.Getenv("DISPLAY") == "" && os.Getenv("WAYLAND_DISPLAY") == "" {
			return errors.New("there is no display")
		}
	}
	return exec.CommandContext(ctx, name, args...).Run()
}
